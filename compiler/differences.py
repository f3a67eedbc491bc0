"""What differs between two plans: what changes the weights, what only where they are computed, what only names; and which jobs
run again because of it. `polymath diff` prints this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..specs.build import show_path, to_json
from ..specs.fields import Identity
from ..specs.locations import is_place
from ..specs.tree import identity_of
from .plan import Job, Plan
from .provenance import Origin, Origins, leaves

UNSET = "not set"
ALARMS = "student.distill.alarms."
_LOST = Origin(value=UNSET, origin="not written")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A value of the spec, or the content of an input, that is another one in the second plan."""

    path: str
    identity: str  # numerics | placement | label
    before: Any
    after: Any
    origin: str  # where the second plan has it from; where it has none, the first


@dataclass(frozen=True, kw_only=True, slots=True)
class Rerun:
    """A job whose weights would be others, and why."""

    job: str
    causes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """All that differs."""

    changes: tuple[Change, ...]
    reruns: tuple[Rerun, ...]
    removed: tuple[str, ...]  # jobs of the first plan alone
    replaced: tuple[str, ...]  # jobs that are reused, though they would be computed otherwise
    reused: tuple[str, ...]  # every job of the second plan that is not run again

    def __bool__(self) -> bool:
        return bool(self.changes or self.reruns or self.removed or self.replaced)


def compare(before: Plan, before_origins: Origins, after: Plan, after_origins: Origins) -> Difference:
    """What differs in the second plan."""
    changes = [*_changes(before_origins.spec, after_origins.spec), *_content_changes(before, after)]
    earlier = {job.id: job for job in before.jobs}
    reruns: dict[str, Rerun] = {}
    for job in after.jobs:
        old = earlier.get(job.id)
        if old is None or old.recipe_digest != job.recipe_digest:
            used = {*before_origins.jobs.get(job.id, {}).values(), *after_origins.jobs.get(job.id, {}).values(), "seed"}
            reruns[job.id] = Rerun(job=job.id, causes=tuple(_causes(old, job, changes, used, set(reruns))))
    kept = [job for job in after.jobs if job.id not in reruns]
    return Difference(
        changes=tuple(changes),
        reruns=tuple(reruns.values()),
        removed=tuple(job_id for job_id in earlier if all(job.id != job_id for job in after.jobs)),
        replaced=tuple(job.id for job in kept if earlier[job.id].exact_digest != job.exact_digest),
        reused=tuple(job.id for job in kept),
    )


def _changes(before: Mapping[str, Origin], after: Mapping[str, Origin]) -> list[Change]:
    changes: list[Change] = []
    for path in [*after, *(path for path in before if path not in after)]:
        old, new = before.get(path, _LOST), after.get(path, _LOST)
        if to_json(old.value) == to_json(new.value):
            continue
        moved = is_place(path, old.value) and is_place(path, new.value)  # an input is what it holds, wherever it lies
        identity = Identity.LABEL if moved else identity_of(path)
        if any(_skips(path, origins) for origins in (before, after)):
            identity = Identity.NUMERICS
        origin = (after if path in after else before)[path].origin
        changes.append(Change(path=path, identity=identity.value, before=old.value, after=new.value, origin=origin))
    return changes


def _skips(path: str, origins: Mapping[str, Origin]) -> bool:
    """Whether a value belongs to an alarm that keeps weights from moving, where other alarms are only labels."""
    if not path.startswith(ALARMS):
        return False
    action = origins.get(f"{ALARMS}{path.removeprefix(ALARMS).split('.')[0]}.action", _LOST)
    return bool(action.value == "skip")


def _content_changes(before: Plan, after: Plan) -> list[Change]:
    """Inputs that hold something else."""
    old, new = _contents(before), _contents(after)
    return [
        Change(
            path=f"content of {source}",
            identity=Identity.NUMERICS.value,
            before=_short(old[source]),
            after=_short(new[source]),
            origin="the data",
        )
        for source in new
        if source in old and old[source] != new[source]
    ]


def _contents(plan: Plan) -> dict[str, str | None]:
    return {one.source: one.digest for job in plan.jobs for one in job.inputs.values() if one.source is not None}


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else f"sha256 {digest[:12]}"


def _causes(old: Job | None, job: Job, changes: list[Change], used: set[str], reruns: set[str]) -> list[str]:
    if old is None:
        return ["new"]
    sources = {f"content of {one.source}" for one in job.inputs.values() if one.source is not None}
    mine = [one for one in changes if one.identity == Identity.NUMERICS.value and one.path in used | sources]
    causes = [f"{one.path} ({one.origin})" for one in mine]
    causes += [f"follows {need}" for need in job.needs if need in reruns]
    causes += [f"no longer follows {need}" for need in old.needs if need not in job.needs]
    if not causes:  # the plans say nothing of where their values came from, or a pass decided otherwise
        settings = dict(leaves(to_json(old.settings)))
        causes = [f"settings.{show_path(path)}" for path, value in leaves(to_json(job.settings)) if settings.get(path) != value]
    return causes or ["its seed or its inputs"]
