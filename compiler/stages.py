"""The training stages of a spec in one list, each with its path, its kind and what it trains on; and the trajectories that models
play. Checks and lowering share them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..specs.build import Path
from ..specs.distillation import Distill
from ..specs.model import GrpoPhase, Sft, SftPhase, Spec, StudentSft, TrajectorySource

Block = StudentSft | SftPhase | GrpoPhase | Distill


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training stage."""

    id: str  # the job's id
    kind: str  # sft | grpo | distill
    path: Path  # where its block stands in the spec
    block: Block
    domains: tuple[str, ...]


def stages(spec: Spec) -> Iterator[Stage]:
    """Every training stage that the spec writes out, after `resolve`."""
    sft = spec.student.sft
    yield Stage(id="sft", kind="sft", path=("student", "sft"), block=sft, domains=tuple(sft.domains))
    for name, teacher in spec.teachers.items():
        for number, phase in enumerate(teacher.phases):
            path = ("teachers", name, "phases", number)
            yield Stage(id=f"teachers.{name}.{number + 1}", kind=phase.method, path=path, block=phase, domains=tuple(phase.domains))
    if spec.student.distill is not None:
        distill = spec.student.distill
        yield Stage(id="distill", kind="distill", path=("student", "distill"), block=distill, domains=tuple(sorted(spec.domains)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """A trajectory source that models play."""

    domain: str
    path: Path  # where its `self_play` stands in the spec
    source: TrajectorySource
    models: dict[str, str]  # of the run, by role

    @property
    def id(self) -> str:
        """The id of its job."""
        return f"synthesize.{self.domain}.{self.source.name}"

    def is_read_by(self, stage: Stage) -> bool:
        """Whether a stage trains on it."""
        return isinstance(stage.block, Sft) and self.domain in stage.domains and self.source.name == stage.block.trajectories


def played(spec: Spec) -> Iterator[Played]:
    """Every source that models play."""
    for name, domain in spec.domains.items():
        for number, source in enumerate(domain.trajectories):
            if source.synthesize is not None and source.self_play is not None and source.is_played:
                path = ("domains", name, "trajectories", number, "self_play")
                yield Played(domain=name, path=path, source=source, models=source.self_play.models)
