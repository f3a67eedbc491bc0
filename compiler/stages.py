"""The training stages of a spec in one list, each with its path, its kind and what it trains on. Checks and lowering share it."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..specs.build import Path
from ..specs.distillation import Distill
from ..specs.model import GrpoPhase, SftPhase, Spec, StudentSft

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
