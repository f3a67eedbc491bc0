"""The estimate of a whole spec: its model, every job, the cluster's time; and what a run measured, folded back in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...specs.build import from_json
from ...specs.diagnostics import ExitCode, UserError
from ...specs.families import Dimensions, dimensions_of
from ...specs.hardware import ACCELERATORS
from ...specs.model import Model, Sft, Spec
from ..driver import compile_in_memory
from ..lock import Lock, lock_path, read_lock
from ..plan import Plan, read_plan
from ..stages import stages
from .jobs import JobEstimate, estimate_job
from .parameters import active, count_by_component, total
from .quantity import Quantity
from .rates import TRAINING_KINDS, Rates, seconds_per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a spec will need. What is not known is left out, and `notes` say why."""

    name: str
    accelerator: str
    devices: int  # of the cluster
    parameters: tuple[Quantity, ...]  # all, those that a token meets, and by component
    jobs: tuple[JobEstimate, ...]
    waves: tuple[tuple[str, ...], ...]  # ids of jobs that may run at the same time
    seconds: Quantity | None  # of all jobs
    device_hours: Quantity | None
    rates: Mapping[str, str]  # by kind of job, in words
    notes: tuple[str, ...]


def estimate_spec(path: Path, overrides: Sequence[str] = (), calibrate: Path | None = None) -> Estimate:
    """Estimate a spec. `calibrate` is a run directory whose measured steps replace the assumed rates.

    Raises:
        SpecInvalid: the spec has mistakes.
        UserError: the run has no plan or no finished step.
    """
    compiled = compile_in_memory(path, overrides)
    assert compiled.spec is not None and compiled.plan is not None
    model = compiled.dimensions
    if model is None:
        fix = "add `size` to `model`, or copy the checkpoint's config.json to this machine"
        raise UserError(f"nothing says how large the model of {path} is", exit_code=ExitCode.SPEC, fix=fix)
    accelerator = compiled.spec.cluster.accelerator
    rates = measured_rates(calibrate, accelerator) if calibrate is not None else Rates(accelerator=accelerator)
    rows = packed_rows(compiled.spec, read_lock(lock_path(path)))
    jobs = tuple(
        estimate_job(job, compiled.plan, model, rates, rows, compiled.runners_up.get(job.id, ())) for job in compiled.plan.jobs
    )
    return _gathered(compiled.plan, model, jobs, rates)


def measured_rates(run: Path, accelerator: str) -> Rates:
    """The FLOP/s that every device of a run's trainers reached, by kind of job: the FLOPs of the run's own estimate over the
    median seconds of its steps.

    Raises:
        UserError: it is no run, ran elsewhere, or finished no step.
    """
    plan = read_plan(run / "plan")
    if plan.cluster.accelerator != accelerator:
        raise UserError(
            f"{run} ran on {plan.cluster.accelerator}, but the spec is for {accelerator}",
            exit_code=ExitCode.USAGE,
            fix="calibrate with a run on the same kind of device",
        )
    model = dimensions_of(from_json(Model, plan.jobs[0].settings["model"]))
    if model is None:
        raise UserError(f"nothing says how large the model of {run} was", exit_code=ExitCode.USAGE, fix="name its `size`")
    amounts = dict.fromkeys(TRAINING_KINDS, 0.0)
    spent = dict.fromkeys(TRAINING_KINDS, 0.0)
    for job in plan.jobs:
        seconds = seconds_per_step(run / "jobs" / job.folder) if job.kind in TRAINING_KINDS else None
        if seconds is not None:
            estimated = estimate_job(job, plan, model, Rates(accelerator=accelerator), {})
            amounts[job.kind] += sum(one.value for one in estimated.flops)
            spent[job.kind] += seconds * job.roles["trainer"].devices
    measured = {kind: amounts[kind] / spent[kind] for kind in TRAINING_KINDS if spent[kind]}
    if not measured:
        raise UserError(f"{run} holds no finished step", exit_code=ExitCode.USAGE, fix="run it first: polymath launch")
    return Rates(accelerator=accelerator, measured=measured, measured_in=run.name)


def packed_rows(spec: Spec, lock: Lock | None) -> dict[str, Quantity]:
    """By SFT job, the packed rows of an epoch: rows of its files times their median tokens. Only what is wholly known."""
    found: dict[str, Quantity] = {}
    for stage in stages(spec):
        if not isinstance(stage.block, Sft):
            continue
        tokens, rows, known = 0.0, 0, True
        for name in stage.domains:
            for number, source in enumerate(spec.domains[name].trajectories):
                if source.name != stage.block.trajectories:
                    continue
                locked = lock.sources.get(f"source.{name}.{number}") if lock is not None else None
                limits = spec.domains[name].limits
                if source.synthesize is not None and limits is not None:
                    tokens, rows = tokens + source.synthesize * limits.context_tokens, rows + source.synthesize
                elif locked is not None and locked.rows and "tokens" in locked.lengths:
                    tokens, rows = tokens + locked.rows * locked.lengths["tokens"].p50, rows + locked.rows
                else:
                    known = False
        if known and rows:
            found[stage.id] = Quantity(
                name="packed rows",
                value=max(1.0, tokens / stage.block.sequence_tokens),
                unit="rows",
                formula="n x t / L: trajectories of t tokens (the locked median; demonstrations at their limit), packed",
                inputs={"n": rows, "t": tokens / rows, "L": stage.block.sequence_tokens},
            )
    return found


def _gathered(plan: Plan, model: Dimensions, jobs: tuple[JobEstimate, ...], rates: Rates) -> Estimate:
    by_id = {job.id: job for job in jobs}
    waves = tuple(tuple(job for number in wave for job in plan.processes[number]) for wave in plan.waves)
    computing = [job for job in jobs if job.tokens is not None]
    missing = [job.id for job in computing if job.total_seconds is None]
    seconds = hours = None
    if not missing:
        longest = [
            max(sum(by_id[job].total_seconds or 0.0 for job in plan.processes[number]) for number in wave) for wave in plan.waves
        ]
        seconds = Quantity(
            name="time",
            value=sum(longest),
            unit="seconds",
            formula="the longest process of every wave, one wave after the other; without start-up, checkpoints and failures",
        )
        hours = Quantity(
            name="device-hours",
            value=sum(job.device_hours.value for job in computing if job.device_hours is not None),
            unit="hours",
            formula="the sum over all jobs",
        )
    return Estimate(
        name=plan.name,
        accelerator=plan.cluster.accelerator,
        devices=plan.cluster.nodes * plan.cluster.per_node,
        parameters=_parameters(model),
        jobs=jobs,
        waves=waves,
        seconds=seconds,
        device_hours=hours,
        rates={kind: rates.described(kind) for kind in TRAINING_KINDS if any(job.kind == kind for job in jobs)},
        notes=tuple(_notes(plan, model, missing)),
    )


def _parameters(model: Dimensions) -> tuple[Quantity, ...]:
    counts = count_by_component(model)
    every = Quantity(
        name="parameters", value=total(model), unit="parameters", formula=" + ".join(counts), inputs=dict[str, float](counts)
    )
    met = Quantity(
        name="active",
        value=active(model),
        unit="parameters",
        formula="e x K / E + o: the experts that a token visits, and all else but embedding, norms and vision tower",
        inputs={
            "e": counts["experts"],
            "K": model.experts_per_token,
            "E": model.experts,
            "o": active(model) - counts["experts"] * model.experts_per_token // model.experts,
        },
    )
    return (every, met)


def _notes(plan: Plan, model: Dimensions, missing: Sequence[str]) -> list[str]:
    notes: list[str] = []
    if model.vocabulary is None:
        notes.append("the vocabulary is not known without the tokenizer: embedding, output and logits are left out")
    if missing:
        notes.append(f"no total: the time of {', '.join(missing)} is not known")
    if ACCELERATORS[plan.cluster.accelerator].is_gpu:
        notes.append("activations were measured on processors only; kernels of GPUs differ (docs/estimate.md)")
    return notes
