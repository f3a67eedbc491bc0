"""What a job sees: its plan, its folder, its inputs, and how it says that it is finished.

A job's folder is trusted only once `DONE.json` stands in it, and then only as far as the sizes and hashes written there go.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import fsspec

from ..compiler.canonical import hash_of
from ..compiler.plan import Job, Plan, Sources
from ..specs.build import from_json
from ..specs.diagnostics import ExitCode, UserError
from ..specs.locations import local_path
from .files import describe_files, sha256_of, write_json

DONE = "DONE.json"
TOLD_ELSEWHERE = "its own message says why"  # of a rank that leaves because another has to; the other's message is shown
STOP_REQUEST = "STOP"
CLEANUP_SECONDS = 30.0  # of a rank that leaves out of its turn
ROLLOUT = "rollout.json"  # how far the batch is that is being played
PUBLISHED = ("model", "trajectories", "contamination.json", "float32", "bfloat16", "result.json")
T = TypeVar("T")


class Interrupted(Exception):
    """A stop was asked for; the job has saved what it needs to go on."""


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """One job as one rank sees it. `barrier` waits for all ranks; what is put on `cleanup` is closed when the job is over."""

    plan: Plan
    sources: Sources
    job: Job
    run_dir: Path
    rank: int
    world_size: int
    barrier: Callable[[], None]
    any_rank: Callable[[bool], bool] = field(default=bool)  # whether it is true on any rank
    cleanup: ExitStack = field(default_factory=ExitStack)

    @property
    def folder(self) -> Path:
        """`runs/<name>/jobs/<id>-<recipe digest>/`."""
        return self.folder_of(self.job)

    @property
    def is_first_rank(self) -> bool:
        return self.rank == 0

    def folder_of(self, job: Job) -> Path:
        return self.run_dir / "jobs" / job.folder

    def setting(self, name: str, kind: type[T]) -> T:
        """A block of the spec that this job needs, as its dataclass."""
        return from_json(kind, self.job.settings[name])

    def setting_of(self, group: str, name: str, kind: type[T]) -> T:
        """One named block of a group, such as a domain."""
        return from_json(kind, self.job.settings[group][name])

    def input_folder(self, name: str) -> Path:
        """The verified output of an earlier job, such as "model".

        Raises:
            UserError: the earlier job is not finished, or its files are not what it wrote.
        """
        reference = self.job.inputs[name]
        assert reference.job is not None and reference.output is not None
        producer = self.plan.job(reference.job)
        folder = self.folder_of(producer)
        verify_done(folder, producer, self.run_dir)
        return folder / reference.output

    def input_result(self, name: str) -> dict[str, Any]:
        """What an earlier job found."""
        return json.loads(self.input_folder(name).with_name("result.json").read_text())

    def source(self, name: str) -> str:
        """Path or URL of a source of the user's; a relative one is taken from the spec's folder."""
        reference = self.job.inputs[name]
        assert reference.source is not None
        url = self.sources.urls[reference.source]
        return url if "://" in url else str(Path(self.sources.spec_folder, url))

    def verify_source(self, name: str) -> None:
        """Refuse a source that is not what the plan was locked with. Its hash is read once per process.

        Raises:
            UserError: it changed (exit 4), or cannot be read (exit 3).
        """
        url, locked = self.source(name), self.job.inputs[name].digest
        if locked is None or _verified_sources.get(url) == locked:
            return
        path = local_path(url, Path(self.sources.spec_folder))
        if path is not None:
            found = hash_of(path)
        else:
            try:
                with fsspec.open(url, "rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except (OSError, ValueError, ImportError) as error:
                raise UserError(f"{url} cannot be read: {error}", exit_code=ExitCode.SPEC) from error
        if found != locked:
            raise UserError(
                f"{url} has changed since the plan was made (sha256 {found[:12]}, locked {locked[:12]})",
                exit_code=ExitCode.STALE,
                fix="lock and compile again, or restore it",
            )
        _verified_sources[url] = locked

    def progress(self, done: int, total: int, unit: str) -> None:
        """Show how far a job without optimizer steps is."""
        if self.is_first_rank:
            write_json(self.folder / "progress.json", {"done": done, "total": total, "unit": unit})

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result and declare the job finished. Every rank calls it; the first writes."""
        self.barrier()
        if self.is_first_rank:
            write_json(self.folder / "result.json", result)
            present = [name for name in PUBLISHED if (self.folder / name).exists()]
            files = describe_files(self.folder, present)
            write_json(self.folder / DONE, {"job": self.job.id, "recipe_digest": self.job.recipe_digest, "files": files})
        self.barrier()

    def stop_requested(self) -> bool:
        """Whether someone asked this run to stop at the next step boundary. Ranks must agree before they act on it."""
        return (self.run_dir / STOP_REQUEST).exists()


def is_done(folder: Path, job: Job) -> bool:
    """Whether a job is finished: its declaration matches and every file it lists has its size."""
    try:
        done = json.loads((folder / DONE).read_text())
        if done["recipe_digest"] != job.recipe_digest:
            return False
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in done["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, cut off, or not what a job writes
        return False


_verified: dict[Path, float] = {}
_verified_sources: dict[str, str] = {}


def verify_done(folder: Path, job: Job, run_dir: Path) -> None:
    """Refuse an input that is missing or was changed after it was published.

    Hashes are read once per process and declaration.
    """
    if not is_done(folder, job):
        raise UserError(
            f"job `{job.id}` is not finished in {run_dir}",
            exit_code=ExitCode.STALE,
            fix=f"run it first: polymath launch, or --job {job.id}",
        )
    stamp = (folder / DONE).stat().st_mtime
    if _verified.get(folder) == stamp:
        return
    for name, entry in json.loads((folder / DONE).read_text())["files"].items():
        if sha256_of(folder / name) != entry["sha256"]:
            raise UserError(
                f"{folder / name} is not what job `{job.id}` wrote: its sha256 differs",
                exit_code=ExitCode.STALE,
                fix=f"delete {folder} and launch again",
            )
    _verified[folder] = stamp


def leave(context: JobContext, error: UserError) -> NoReturn:
    """End this rank from whatever thread, because its main thread waits in a collective that never ends.

    What the job started is ended, as far as that takes no longer than it should.
    """
    say_outcome(context, error.exit_code, error.render())
    closing = threading.Thread(target=context.cleanup.close, daemon=True)
    closing.start()
    closing.join(CLEANUP_SECONDS)
    os._exit(error.exit_code)


def say_outcome(context: JobContext, exit_code: int, message: str) -> None:
    """Tell how this rank leaves a job."""
    if exit_code != ExitCode.OK:
        print(message, file=sys.stderr, flush=True)
    Outcome(job=context.job.id, rank=context.rank, exit_code=exit_code, message=message).write(context.folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a rank left a job."""

    job: str
    rank: int
    exit_code: int
    message: str

    def write(self, folder: Path) -> None:
        write_json(
            folder / f"outcome.{self.rank}.json",
            {"job": self.job, "rank": self.rank, "exit_code": self.exit_code, "message": self.message, "time": time.time()},
        )
