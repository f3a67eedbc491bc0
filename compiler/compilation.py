"""The one value that every pass takes and returns: what is known of a spec so far, and what is wrong with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from ..specs.build import Path, Problem
from ..specs.codes import summary
from ..specs.diagnostics import Diagnostic
from ..specs.families import Dimensions
from ..specs.load import diagnose
from ..specs.model import Spec
from ..specs.yaml import Document, Spans
from .meshes import Candidate
from .plan import Job, Mesh, Plan, Sources


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A value that a pass chose, where the spec left it open."""

    value: Any
    by: str  # the pass
    reason: str  # one clause, such as "32 devices / 2 replicas"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compilation:
    """An immutable snapshot between two passes."""

    path: str  # the spec file, as the user wrote it
    overrides: tuple[str, ...] = ()
    written: Document | None = None  # what the spec says where that is not the file itself: a row of a sweep
    digests: Mapping[str, str | None] = field(default_factory=dict[str, str | None])  # content hash by source key, from the lock
    unproved: tuple[str, ...] = ()  # what only a lock, or one with lengths in tokens, could prove
    spec: Spec | None = None  # after `parse`; a guess while there are diagnostics
    spans: Spans = field(default_factory=lambda: Spans(""))
    root: FilePath = FilePath()
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    mistaken: tuple[Path, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    decisions: Mapping[Path, Decision] = field(default_factory=dict[Path, Decision])  # by path in the spec, or below "jobs", <id>
    dimensions: Dimensions | None = None  # after `size`; None where nothing says how large the model is
    owners: Mapping[str, str] = field(default_factory=dict[str, str])  # after `route`: the teacher of a domain
    order: tuple[str, ...] = ()  # after `route`: teachers, each after the one it starts from
    meshes: Mapping[str, Mesh] = field(default_factory=dict[str, Mesh])  # after `place`: by job id
    runners_up: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict[str, tuple[Candidate, ...]])  # after `place`
    jobs: tuple[Job, ...] = ()  # after `lower`
    sources: Sources | None = None  # after `lower`
    plan: Plan | None = None  # after `emit`

    def with_mistakes(self, *mistakes: Problem | None) -> "Compilation":
        """Add mistakes, leaving out those that only echo one of form."""
        new = [mistake for mistake in mistakes if mistake is not None and not self._echoes(mistake.path)]
        return replace(self, diagnostics=(*self.diagnostics, *(diagnose(mistake, self.spans) for mistake in new)))

    def decided(self, path: Path, value: Any, *, by: str, reason: str) -> "Compilation":
        """Remember that a pass chose a value, and why; `polymath compile --show` and `diff` tell it.

        `path` is a path of the spec, such as `("placement", "sft", "trainer", "fsdp")`; of what the spec has no place for, it is
        `("jobs", <job id>, ...)` and the path in its file, such as `("jobs", "sft", "roles", "trainer", "mesh", "micro_batch")`.
        """
        return replace(self, decisions={**self.decisions, path: Decision(value=value, by=by, reason=reason)})

    def is_mistaken(self, path: Path) -> bool:
        """Whether the form of something at or below a path is wrong, so that what was read there may be incomplete."""
        return any(path == mistaken[: len(path)] for mistaken in self.mistaken)

    def _echoes(self, path: Path) -> bool:
        return self.is_mistaken(path) or any(mistaken == path[: len(mistaken)] for mistaken in self.mistaken)


Pass = Callable[[Compilation], Compilation]


def mistake(code: str, path: Path, detail: str, fix: str | None = None, *, at_key: bool = False) -> Problem:
    """A mistake of meaning; its code must be known."""
    assert summary(code)
    return Problem(code=code, path=path, detail=detail, fix=fix, at_key=at_key)
