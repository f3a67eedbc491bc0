"""Writes a plan directory: all of it or none, never over something that is not a plan. `plan.read_plan` is its counterpart."""

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

SUMMARY_FIELDS = ("id", "kind", "needs", "recipe_digest", "exact_digest")


def write_plan(plan: Plan, sources: Sources, folder: Path, origins: Origins | None = None) -> None:
    """Publish a plan in a folder, replacing an older plan.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / "plan.json").is_file() or not any(folder.iterdir()))):
        raise UserError(f"{folder} exists and is not a plan", exit_code=ExitCode.USAGE, fix="choose another folder with -o")
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


def _holds(folder: Path, files: dict[str, str]) -> bool:
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return there.keys() == files.keys() and all(there[name].read_bytes() == text.encode() for name, text in files.items())


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
