"""The plan: what the compiler writes and the runtime reads.

A plan directory holds `plan.json` (the job graph and its digests), `jobs/<id>.json` (all that one job needs), `graph.mmd` (a
picture) and `sources.json` (where the inputs lie on this machine; outside the digests and the promise of identical bytes).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLAN_FORMAT = "polymath.plan/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The device mesh of a trainer, as torchtitan's degrees. `replicate * shard == devices`; `expert` divides `shard`."""

    devices: int
    replicate: int
    shard: int
    expert: int
    micro_batch: int  # rows that one rank computes at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One group of processes of a job."""

    devices: int
    torchrun: tuple[str, ...]  # arguments before `-m polymath.runtime`, such as `--nproc-per-node=2`
    environment: Mapping[str, str]
    mesh: Mesh | None = None  # trainers only


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
    kind: str  # import | synthesize | sft | grpo | distill | evaluate | export
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
class Plan:
    """A whole plan."""

    name: str
    seed: int
    compiler: str  # version that wrote it
    recipe_digest: str
    exact_digest: str
    jobs: tuple[Job, ...]  # in an order in which they can run
    processes: tuple[tuple[str, ...], ...]  # jobs that share one torchrun invocation, in order
    format: str = field(default=PLAN_FORMAT)

    def job(self, job_id: str) -> Job:
        """The job of this id. Raises KeyError."""
        for job in self.jobs:
            if job.id == job_id:
                return job
        raise KeyError(job_id)
