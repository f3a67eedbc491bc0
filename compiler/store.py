"""Writes a plan directory, or a file: all of it or none, and a plan over nothing but a plan. `plan.read_plan` reads it."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from ..specs.build import to_json
from ..specs.diagnostics import ExitCode, UserError
from .canonical import digest, readable_json
from .graph import mermaid
from .plan import Plan, Sources
from .provenance import ORIGINS, Origins

TOP_LEVEL = ("jobs", "graph.mmd", "plan.json", "sources.json", ORIGINS)  # of a plan directory
SUMMARY_FIELDS = ("id", "kind", "needs", "recipe_digest", "exact_digest")


def write_plan(plan: Plan, sources: Sources, folder: Path, origins: Origins | None = None) -> None:
    """Publish a plan in a folder, replacing an older plan.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    _refuse_another(folder)
    files = plan_files(plan, sources, origins)
    if _holds(folder, files):  # a run may be reading it
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        for name, text in files.items():
            _write(staging / name, text)
        staging.chmod(0o755)
        _replace(staging, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def plan_files(plan: Plan, sources: Sources, origins: Origins | None = None) -> dict[str, str]:
    """The files of a plan directory by relative path."""
    files = {f"jobs/{job.id}.json": readable_json(to_json(job)) for job in plan.jobs}
    files["graph.mmd"] = mermaid(plan)
    head = to_json(plan)
    head["jobs"] = [{name: job[name] for name in SUMMARY_FIELDS} for job in head["jobs"]]
    head["files"] = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    head["digest"] = digest(head)
    files[ORIGINS] = readable_json(to_json(origins or Origins()))
    files["sources.json"] = readable_json(to_json(sources))
    files["plan.json"] = readable_json(head)
    return files


def _refuse_another(folder: Path) -> None:
    """An older plan is replaced with all that it holds, so it may hold nothing else."""
    if not folder.exists():
        return
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if not folder.is_dir() or (there and "plan.json" not in there):
        raise UserError(f"{folder} exists and is not a plan", exit_code=ExitCode.USAGE, fix="choose another folder with -o")
    if others := sorted(there - {*TOP_LEVEL}):
        raise UserError(
            f"{folder} holds {others[0]} beside a plan, which would be lost",
            exit_code=ExitCode.USAGE,
            fix="move it elsewhere, or choose another folder with -o",
        )


def _holds(folder: Path, files: dict[str, str]) -> bool:
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return there.keys() == files.keys() and all(there[name].read_bytes() == text.encode() for name, text in files.items())


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """All of a new file or all of the old one, whatever interrupts it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        staging = Path(name)
        try:
            _write(staging, text)
            staging.chmod(mode)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _replace(staging: Path, folder: Path) -> None:
    """Rename into place. Only an older plan stands in the way; it steps aside first and goes last."""
    old = staging.with_name(f"{staging.name}.old")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be written: {error.strerror or error}", exit_code=ExitCode.UNFIT)
