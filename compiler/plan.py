"""The plan: what the compiler writes and the runtime reads.

A plan directory holds `plan.json` (the job graph and its digests), `jobs/<id>.json` (all that one job needs), `graph.mmd` (a
picture), `origins.json` (where every value came from; outside the digests) and `sources.json` (where the inputs lie on this
machine; outside the digests and the promise of identical bytes).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from os.path import normpath
from pathlib import Path
from typing import Any, cast

from ..specs.build import from_json
from ..specs.diagnostics import ExitCode, UserError
from ..specs.locations import local_path
from ..specs.machine import Cluster
from .canonical import digest

PLAN_FORMAT = "polymath.plan/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The device mesh of a trainer, as torchtitan's degrees.

    `replicate * shard * context * tensor * pipeline == devices`; `expert` divides `shard * context * tensor`.
    """

    devices: int
    replicate: int
    shard: int
    expert: int
    micro_batch: int  # rows that one rank computes at once
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    activation_checkpoint: str = "none"  # none | selective | full
    loss_chunks: int = 1  # parts of a row whose logits exist at once, one after the other

    @property
    def data_parallel(self) -> int:
        """Ranks that each take rows of their own."""
        return self.replicate * self.shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One group of processes of a job: its trainer (a torchrun invocation), an engine, or a judge behind an endpoint."""

    devices: int
    torchrun: tuple[str, ...]  # of a trainer: arguments before `-m polymath.runtime`, such as `--nproc-per-node=2`
    environment: Mapping[str, str]
    mesh: Mesh | None = None  # of a trainer
    engine: str | None = None  # of an engine: its name, such as `vllm`; of a service: the model at the endpoint
    tensor: int = 1  # of an engine: devices that hold one copy of the model
    shared: bool = False  # of an engine: its devices are the first of the trainer's
    weights: str | None = None  # of an engine that acts for a trainer: how new ones get there: folder | nccl | ipc
    url_env: str | None = None  # of a service: the environment variable that holds the endpoint's URL


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What a job reads: the output of another job, or a source of the user's."""

    job: str | None = None  # id of the producing job
    output: str | None = None  # its output: "model", "trajectories", ...
    source: str | None = None  # key in sources.json
    digest: str | None = None  # sha256 of the source's content; None where there is no lock


@dataclass(frozen=True, kw_only=True, slots=True)
class Override:
    """One setting of torchtitan's `Trainer.Config`, in a closed, tagged form: `path` names the field, `value` is JSON."""

    path: str  # e.g. "training.seq_len"
    value: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job: a kind, its inputs and everything it must know to run with the passes deleted."""

    id: str
    kind: str  # import | synthesize | contamination | sft | grpo | distill | merge | evaluate | export
    needs: tuple[str, ...]
    seed: int
    recipe_digest: str
    exact_digest: str
    roles: Mapping[str, Role]
    inputs: Mapping[str, Input]
    settings: Mapping[str, Any]  # JSON form of the spec's blocks this job needs
    titan: tuple[Override, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the job's folder under `runs/<name>/jobs/`."""
        return f"{self.id}-{self.recipe_digest[:12]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedDomain:
    """A domain, the one teacher that scores it in distillation, and how much of it."""

    domain: str
    teacher: str
    tasks: int  # distinct training tasks that prompts are drawn from
    prompts: int  # drawn in all steps
    tokens: int  # at most, in the episodes of these prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A whole plan."""

    name: str
    seed: int
    compiler: str  # version that wrote it
    recipe_digest: str
    exact_digest: str
    cluster: Cluster  # the machine that the plan is for
    jobs: tuple[Job, ...]  # in an order in which they can run
    processes: tuple[tuple[str, ...], ...]  # jobs that share one torchrun invocation, in order
    waves: tuple[tuple[int, ...], ...] = ()  # numbers of the processes that fit on the cluster at the same time, wave after wave
    routing: tuple[RoutedDomain, ...] = ()  # every domain once, where there is distillation
    format: str = field(default=PLAN_FORMAT)

    def job(self, job_id: str) -> Job:
        """The job of this id. Raises KeyError."""
        for job in self.jobs:
            if job.id == job_id:
                return job
        raise KeyError(job_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where the inputs lie on this machine. Relative URLs and `runs` are meant against `spec_folder`."""

    spec_folder: str  # absolute
    runs: str  # as written in the spec
    artifacts: str | None = None  # as written in the spec
    urls: Mapping[str, str]  # by the key that an Input's `source` names, as written in the spec

    @property
    def runs_folder(self) -> Path:
        """The folder of runs, absolute.

        Raises:
            UserError: `runs` was edited into what is no folder of this machine.
        """
        folder = local_path(self.runs, Path(self.spec_folder))
        if folder is None:
            raise UserError(
                f"{self.runs} is no folder of this machine", exit_code=ExitCode.STALE, fix="correct `runs` in sources.json"
            )
        return Path(normpath(folder))


@cache
def compiler_version() -> str:
    """The version that a plan is stamped with, and without which it is refused."""
    from importlib.metadata import PackageNotFoundError, version  # 15 ms that `validate` need not wait for

    try:
        return version("polymath")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+source"


def read_plan(folder: Path) -> Plan:
    """Read a plan and verify it.

    Raises:
        UserError: 64 where there is no plan; 4 where a file was edited or is missing, or another version of Polymath wrote it.
    """
    path = folder / "plan.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no plan", exit_code=ExitCode.USAGE, fix="make one: polymath compile my.yaml -o plan/")
    head = _read_object(path)
    if head.get("format") != PLAN_FORMAT or head.get("compiler") != compiler_version():
        raise UserError(
            f"{path} was written by Polymath {head.get('compiler')} ({head.get('format')}); this is {compiler_version()}",
            exit_code=ExitCode.STALE,
            fix=f"compile it again: polymath compile my.yaml -o {folder}",
        )
    if head.pop("digest", None) != digest(head):
        raise _edited(path, folder)
    try:
        files = cast(dict[str, str], head.pop("files"))
        for name, expected in sorted(files.items()):
            if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise _edited(folder / name, folder)
        listed = cast(list[dict[str, Any]], head.pop("jobs"))
        jobs = [_read_object(folder / "jobs" / f"{job['id']}.json") for job in listed]
        return from_json(Plan, {**head, "jobs": jobs})
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # whoever edited it knew how to write the digest anew
        raise _edited(path, folder) from error


def read_sources(folder: Path) -> Sources:
    """Read `sources.json`, which a user may edit when data moved.

    Raises:
        UserError: it is missing or malformed.
    """
    path = folder / "sources.json"
    if not path.is_file():
        raise UserError(f"{path} is missing", exit_code=ExitCode.STALE, fix=f"polymath compile my.yaml -o {folder}")
    try:
        return from_json(Sources, _read_object(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}", exit_code=ExitCode.STALE, fix=f"polymath compile my.yaml -o {folder}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", exit_code=ExitCode.STALE) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold a JSON object", exit_code=ExitCode.STALE)
    return cast(dict[str, Any], data)


def _edited(path: Path, folder: Path) -> UserError:
    return UserError(
        f"{path} is not what the compiler wrote",
        exit_code=ExitCode.STALE,
        fix=f"change the spec instead, then: polymath compile my.yaml -o {folder}",
    )
