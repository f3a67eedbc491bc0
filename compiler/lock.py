"""The lock: what a spec's inputs held when they were read once. It stands beside the spec as `<stem>.lock.json`.

It proves what the compiler cannot see in a spec: that every row of the data is JSON of the promised form, and the content hash
by which a finished job is known again. It does not prove what needs a tokenizer; the runtime checks that.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..specs.build import Path as SpecPath
from ..specs.build import from_json, to_json
from ..specs.codes import summary
from ..specs.diagnostics import Diagnostic, ExitCode, SpecInvalid, UserError
from ..specs.locations import local_path
from ..specs.model import Spec, TrajectorySource
from .canonical import digest, readable_json
from .compilation import Compilation
from .passes.lower import source_urls

LOCK_FORMAT = "polymath.lock/1"
PACKAGES = ("polymath", "torch", "torchtitan", "transformers", "tokenizers", "safetensors")
ROW_FIELDS = {"openai": (("messages",), ("traj",)), "question_answer": (("question", "answer"),)}  # any one group suffices
MISTAKES_PER_FILE = 5
FIELDS_SHOWN = 6
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedSource:
    """One input as it was."""

    url: str
    sha256: str
    bytes: int
    rows: int | None  # of JSONL files; folders have none


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """A whole lock file."""

    spec_digest: str
    sources: Mapping[str, LockedSource]  # by key in sources.json
    versions: Mapping[str, str]
    format: str = LOCK_FORMAT


def lock_path(spec: Path) -> Path:
    """Where the lock of a spec stands."""
    return spec.with_name(f"{spec.stem}.lock.json")


def make_lock(compilation: Compilation) -> Lock:
    """Read every input once.

    Raises:
        SpecInvalid: a file is missing or empty, or a row is not what its format promises; names file, row and line of the spec.
    """
    spec = compilation.spec
    assert spec is not None
    sources: dict[str, LockedSource] = {}
    diagnostics: list[Diagnostic] = []
    for key, url in source_urls(spec).items():
        path, source = _spec_path(spec, key)
        try:
            if source is None:
                sources[key] = _lock_folder(url, compilation.root)
            else:
                sources[key] = _lock_rows(url, compilation.root, source)
        except _BadSource as bad:
            for code, detail, fix in bad.mistakes:
                span = compilation.spans.at(path)
                diagnostics.append(Diagnostic(code=code, summary=summary(code), span=span, detail=detail, fix=fix))
    if diagnostics:
        raise SpecInvalid(diagnostics, compilation.texts)
    return Lock(spec_digest=digest(to_json(spec)), sources=sources, versions=_versions())


def write_lock(lock: Lock, path: Path) -> None:
    """Publish a lock.

    Raises:
        UserError: it cannot be written.
    """
    try:
        handle, staging = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(readable_json(to_json(lock)))
            file.flush()
            os.fsync(file.fileno())
        Path(staging).chmod(0o644)
        Path(staging).replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}", exit_code=ExitCode.UNFIT) from error


def read_lock(path: Path) -> Lock | None:
    """The lock of a spec, if there is one.

    Raises:
        UserError: it is malformed.
    """
    if not path.is_file():
        return None
    fix = "delete it, or write it anew with `polymath lock`"
    try:
        lock = from_json(Lock, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a lock: {error}", exit_code=ExitCode.STALE, fix=fix) from error
    if lock.format != LOCK_FORMAT:
        raise UserError(f"{path} has the form {lock.format}, not {LOCK_FORMAT}", exit_code=ExitCode.STALE, fix=fix)
    return lock


def locked_digests(lock: Lock | None, spec: Spec, root: Path, shown: str) -> dict[str, str | None]:
    """The content hash of every input: as locked, or as it is now; None for what is not on this machine and not locked.

    Raises:
        UserError: an input is not what was locked, or is not in the lock.
    """
    urls = source_urls(spec)
    if lock is None:
        paths = {key: local_path(url, root) for key, url in urls.items()}
        return {key: None if path is None or not path.exists() else _sha256(path) for key, path in paths.items()}
    fix = f"read the data anew: polymath lock {shown}"
    for key, url in urls.items():
        locked = lock.sources.get(key)
        if locked is None or locked.url != url:
            raise UserError(f"the lock of {shown} does not know {url}", exit_code=ExitCode.STALE, fix=fix)
        path = local_path(url, root)
        if path is not None and path.exists() and _sha256(path) != locked.sha256:
            raise UserError(f"{url} changed since {shown} was locked", exit_code=ExitCode.STALE, fix=fix)
    return {key: lock.sources[key].sha256 for key in urls}


class _BadSource(Exception):
    def __init__(self, *mistakes: tuple[str, str, str | None]) -> None:
        super().__init__(mistakes)
        self.mistakes = mistakes


def _spec_path(spec: Spec, key: str) -> tuple[SpecPath, TrajectorySource | None]:
    """Where the spec names a source, and what it says of the rows; folders have none."""
    parts = key.split(".")
    if parts[0] == "model":
        return ("model", parts[1]), None
    number = int(parts[2])
    return ("domains", parts[1], "trajectories", number, "path"), spec.domains[parts[1]].trajectories[number]


def _open(url: str, root: Path) -> AbstractContextManager[BinaryIO]:
    path = local_path(url, root)
    if path is not None:
        return path.open("rb")
    import fsspec  # pyright: ignore[reportMissingTypeStubs]  (only for URLs: it costs a tenth of a second)

    return cast(Any, fsspec).open(url, "rb")


def _lock_rows(url: str, root: Path, source: TrajectorySource) -> LockedSource:
    """Hash a JSONL file and look at every row."""
    content, size, rows = hashlib.sha256(), 0, 0
    mistakes: list[tuple[str, str, str | None]] = []
    rewards: list[float] = []
    try:
        with _open(url, root) as file:
            for number, line in enumerate(file, 1):
                content.update(line)
                size += len(line)
                if not line.strip():
                    continue
                rows += 1
                row = _row(line)
                fault, fix = (row, None) if isinstance(row, str) else _form_fault(row, source.format)
                if fault:
                    mistakes.append(("E0314", f"{url}, row {number}: {fault}", fix))
                elif isinstance(row, dict) and isinstance(row.get("reward"), (int, float)):
                    rewards.append(float(row["reward"]))
                if len(mistakes) == MISTAKES_PER_FILE:
                    break
    except (OSError, ValueError, ImportError) as error:
        raise _BadSource(("E0312", f"{url} cannot be read: {error}", None)) from error
    if mistakes:
        raise _BadSource(*mistakes)
    if not rows:
        raise _BadSource(("E0313", f"{url} holds no row", "one row of JSON on every line"))
    if source.minimum_reward is not None:
        _check_filter(url, source.minimum_reward, rewards, rows)
    return LockedSource(url=url, sha256=content.hexdigest(), bytes=size, rows=rows)


def _check_filter(url: str, minimum: float, rewards: Sequence[float], rows: int) -> None:
    """A filter that nothing passes leaves nothing to train on; one that no row can fail filters nothing."""
    if not rewards:
        detail = f"no row of {url} has a `reward`, so `minimum_reward` would filter nothing"
        raise _BadSource(("E0320", detail, "remove `minimum_reward`, or write each row's `reward` into it"))
    if len(rewards) == rows and max(rewards) < minimum:
        detail = f"`minimum_reward` is {minimum:g}, and the largest of {url} is {max(rewards):g}"
        raise _BadSource(("E0320", detail, f"at most {max(rewards):g}"))


def _row(line: bytes) -> dict[str, Any] | str:
    """A row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not valid JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError):
        return "not valid JSON: too deep or too large a number"
    if not isinstance(row, dict):
        return "not a JSON object"
    return cast(dict[str, Any], row)


def _form_fault(row: Mapping[str, Any], format_name: str) -> tuple[str | None, str | None]:
    """What a row lacks that its format promises, and the format or the field that was likely meant."""
    fitting = [name for name, groups in ROW_FIELDS.items() if any(all(field in row for field in group) for group in groups)]
    if format_name in fitting:
        return None, None
    groups = ROW_FIELDS[format_name]
    wanted = " or ".join(" and ".join(f"`{field}`" for field in group) for group in groups)
    fix = f"write `format: {fitting[0]}`" if fitting else None
    if fix is None and row:
        missing = min(([field for field in group if field not in row] for group in groups), key=len)
        fix = f"it has {', '.join(f'`{name[:40]}`' for name in list(row)[:FIELDS_SHOWN])}: rename what is meant by `{missing[0]}`"
    return f"has no {wanted}, which format `{format_name}` wants", fix


def _lock_folder(url: str, root: Path) -> LockedSource:
    path = local_path(url, root)
    if path is None:
        detail = f"{url}: checkpoints and tokenizers are read from this machine's folders only"
        raise _BadSource(("E0312", detail, "copy the folder to this machine"))
    if not path.is_dir():
        raise _BadSource(("E0312", f"{url}: there is no such folder on this machine", "copy the folder to this machine"))
    size = sum(file.stat().st_size for file in _files(path))
    return LockedSource(url=url, sha256=_sha256(path), bytes=size, rows=None)


def _sha256(path: Path) -> str:
    """The hash of a file; of a folder, that of its files' names and hashes.

    Raises:
        UserError: it cannot be read.
    """
    if path.is_dir():
        return digest({file.relative_to(path).as_posix(): _sha256(file) for file in _files(path)})
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", exit_code=ExitCode.SPEC) from error
    return content.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
