"""Publishing files so that a reader sees all of them or none.

A file is written beside its place, flushed to the disk and renamed; a folder is filled in a staging folder next to it, then
renamed. A full disk becomes one clear error, and what was half written is removed.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..specs.diagnostics import ExitCode, UserError
from ..specs.locations import local_path, near

STAGING_PREFIX = ".staging-"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unreadable(url: str, error: Exception, what: str = "file") -> UserError:
    """The one message for a file or folder that was named and cannot be read, with the name beside it that was likely meant."""
    path = local_path(url, Path())
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        otherwise = "check its path" if url.startswith(("/", "file:")) else "relative paths start at the folder the command runs in"
        fix = None if path is None else near(path, url, otherwise)
        return UserError(f"there is no {what} {url}", exit_code=ExitCode.SPEC, fix=fix)
    if isinstance(error, IsADirectoryError):
        return UserError(f"{url} cannot be read: it is a folder", exit_code=ExitCode.SPEC, fix="name a file in it")
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{url} cannot be read: {why}", exit_code=ExitCode.SPEC)


def check_output(path: Path, example: str) -> None:
    """Refuse a folder where a file is to be written, before any work is done.

    Raises:
        UserError: exit code 64.
    """
    if path.is_dir():
        fix = f"name a file in it, such as {path / example}"
        raise UserError(f"{path} is a folder", exit_code=ExitCode.USAGE, fix=fix)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_files(folder: Path, names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `folder` (or below the named entries), by relative path, sorted."""
    roots = [folder] if names is None else [folder / name for name in names]
    found: list[Path] = []
    for root in roots:
        found += [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(found)
    }


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically and durably."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically and durably."""
    with full_disk_is_clear(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"{STAGING_PREFIX}{path.name}.{os.getpid()}")
        try:
            with staging.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def published_folder(destination: Path) -> Iterator[Path]:
    """Fill the yielded staging folder; on success it becomes `destination`, replacing what an earlier attempt left."""
    with full_disk_is_clear(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging = staging_folder(destination)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            publish(staging, destination)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def staging_folder(destination: Path) -> Path:
    """Where `destination` is filled before it is published."""
    return destination.with_name(f"{STAGING_PREFIX}{destination.name}")


def publish(staging: Path, destination: Path) -> None:
    """Flush a filled folder to the disk and rename it into place."""
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(path)
    sync_folder(staging)
    if destination.exists():
        shutil.rmtree(destination)
    staging.rename(destination)
    sync_folder(destination.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def full_disk_is_clear(path: Path) -> Iterator[None]:
    """Turn a full disk into a UserError that names the place and the room left."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise full_disk_error(path) from error
    except SafetensorError as error:  # its writer gives the system's error as text only
        if not any(f"os error {number})" in str(error) for number in FULL_DISK):
            raise
        raise full_disk_error(path) from error


def full_disk_error(path: Path) -> UserError:
    """The one message for a full disk."""
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    free_mib = shutil.disk_usage(existing).free / 2**20
    return UserError(
        f"the disk is full: could not write {path} ({free_mib:.0f} MiB free)",
        exit_code=ExitCode.FAILED,
        fix="make room and launch again; what was finished is kept",
    )
