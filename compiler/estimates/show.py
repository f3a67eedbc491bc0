"""An estimate for people: the budget of all jobs in one table, then every number with its formula."""

from collections.abc import Iterator

from ..meshes import described
from .jobs import JobEstimate
from .quantity import Quantity, with_unit
from .spec import Estimate

ROLES = ("trainer", "rollout", "scorer", "judge")


def brief(estimate: Estimate) -> Iterator[str]:
    """The budget: a line for each job."""
    yield f"{estimate.name}: {with_unit(estimate.parameters[0].value, 'parameters')} on {estimate.devices} x {estimate.accelerator}"
    rows: list[tuple[str, ...]] = [("job", "trainer", "rollout", "scorer", "judge", "memory", "step", "steps", "device-hours")]
    for job in estimate.jobs:
        each = job.seconds_per_step
        roles = ["external" if name == "judge" and name in job.devices else str(job.devices.get(name, "")) for name in ROLES]
        rows.append(
            (
                job.id,
                *roles,
                with_unit(job.memory.total, "bytes") if job.memory is not None else "",
                with_unit(each, "seconds") if each is not None else "",
                f"{job.steps.value:g}" if job.steps is not None else "",
                _hours(job.device_hours) if job.device_hours is not None else "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    side_by_side = [wave for wave in estimate.waves if len(wave) > 1]
    if side_by_side and len(estimate.waves) > 1:
        yield "in order: " + "; then ".join(", ".join(wave) for wave in estimate.waves)
    if estimate.seconds is not None and estimate.device_hours is not None:
        yield f"in all {with_unit(estimate.seconds.value, 'seconds')}, {_hours(estimate.device_hours)} device-hours"
    for note in estimate.notes:
        yield f"note: {note}"


def _hours(hours: Quantity) -> str:
    return f"{hours.value:,.0f}" if hours.value >= 100 else f"{hours.value:.2g}"


def full(estimate: Estimate) -> Iterator[str]:
    """The budget, then every number with its formula."""
    yield from brief(estimate)
    yield ""
    yield "model"
    for one in estimate.parameters:
        yield from _quantity(one)
    yield "rates"
    for kind, text in estimate.rates.items():
        yield f"  {kind}: {text}"
    for job in estimate.jobs:
        if job.tokens is not None:
            yield ""
            yield from _job(job)


def _job(job: JobEstimate) -> Iterator[str]:
    roles = ", ".join(f"{name} {count}" for name, count in job.devices.items() if count)
    yield f"{job.id} ({roles})"
    if job.mesh is not None:
        yield f"  mesh: {described(job.mesh)}"
        for one in job.runners_up:
            yield f"    runner-up: {described(one.mesh)}; {with_unit(one.bytes, 'bytes')}"
    if job.memory is not None:
        limit = f" of {with_unit(job.memory_limit, 'bytes')} that tensors may fill" if job.memory_limit is not None else ""
        yield f"  memory of the fullest rank: {with_unit(job.memory.total, 'bytes')}{limit}"
        for one in job.memory.quantities:
            if one.value:
                yield from _quantity(one, "    ")
    for name, engine in job.engines.items():
        room = f", {engine.sequences} sequences at once" if engine.sequences is not None else ""
        yield f"  memory of a device of `{name}`{room}"
        yield from _quantity(engine.weights, "    ")
        yield from _quantity(engine.cache, "    ")
    titles = {"FLOPs of a step": job.flops, "sent by a rank in a step": job.communication, "time of a step": job.seconds}
    for found in (job.tokens, job.steps):
        if found is not None:
            yield from _quantity(found)
    for title, quantities in titles.items():
        if quantities:
            yield f"  {title}"
        for one in quantities:
            yield from _quantity(one, "    ")
    for found in (job.device_hours, job.largest_context, job.largest_k):
        if found is not None:
            yield from _quantity(found)
    for note in job.notes:
        yield f"  note: {note}"


def _quantity(one: Quantity, indent: str = "  ") -> Iterator[str]:
    yield f"{indent}{one.name}: {with_unit(one.value, one.unit)}"
    yield f"{indent}    = {one.explained()}"
