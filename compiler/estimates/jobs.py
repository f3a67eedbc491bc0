"""The estimate of one job: memory of its ranks and engines, FLOPs, bytes moved, seconds, and how far it could be stretched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

from ...specs.build import from_json
from ...specs.families import Dimensions
from ...specs.hardware import ACCELERATORS, Accelerator
from ...specs.machine import Engines, Precision
from ..losses import EMBEDDED, embedded_models, reads_vocabulary, values_beside
from ..meshes import Candidate, Request, bytes_of, degrees_of, load_of
from ..plan import Job, Mesh, Plan
from ..waves import devices_of
from .compute import communication, flops, passes_of_training
from .memory import Memory, memory
from .quantity import Quantity
from .rates import BANDWIDTH_SHARE, Rates
from .serving import Serving, serving
from .work import Work, stage_of, work_of

SHORTEST = 128  # tokens; contexts are looked for in steps of this


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEstimate:
    """Everything that is said of a job. What is not known is None, and `notes` say why."""

    id: str
    kind: str
    devices: Mapping[str, int]  # by role
    mesh: Mesh | None
    memory: Memory | None
    memory_limit: float | None
    engines: Mapping[str, Serving]
    tokens: Quantity | None
    steps: Quantity | None
    flops: tuple[Quantity, ...]  # of a step, by what for
    communication: tuple[Quantity, ...]  # bytes that a rank sends in a step
    seconds: tuple[Quantity, ...]  # of a step, by what for
    device_hours: Quantity | None
    rate: str
    largest_context: Quantity | None
    largest_k: Quantity | None
    runners_up: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds of one step in all."""
        return sum(one.value for one in self.seconds) if self.seconds else None

    @property
    def total_seconds(self) -> float | None:
        """Seconds of the job."""
        each = self.seconds_per_step
        return None if each is None or self.steps is None else each * self.steps.value


def estimate_job(
    job: Job,
    plan: Plan,
    model: Dimensions,
    rates: Rates,
    rows: Mapping[str, Quantity],
    runners_up: Sequence[Candidate] = (),
) -> JobEstimate:
    """The estimate of one job of a plan."""
    accelerator = ACCELERATORS[plan.cluster.accelerator]
    mesh, work = job.roles["trainer"].mesh, work_of(job, rows)
    request = _request(job, plan, model)
    needed = memory(model, degrees_of(mesh), load_of(request, mesh)) if mesh is not None else None
    engines = {
        name: serving(model, accelerator, role.tensor, work.context_tokens)
        for name, role in job.roles.items()
        if work is not None and role.engine is not None and role.devices
    }
    amounts = _flops(work, model, mesh, job) if work is not None else ()
    seconds = _seconds(job, model, work, amounts, rates, accelerator, engines) if work is not None else ()
    steps = work.steps if work is not None else None
    return JobEstimate(
        id=job.id,
        kind=job.kind,
        devices={name: role.devices for name, role in job.roles.items()},
        mesh=mesh,
        memory=needed,
        memory_limit=request.memory_limit,
        engines=engines,
        tokens=work.tokens if work is not None else None,
        steps=steps,
        flops=amounts,
        communication=_communication(work, model, mesh, request) if work is not None and mesh is not None else (),
        seconds=seconds,
        device_hours=_device_hours(job, seconds, steps),
        rate=rates.described(job.kind),
        largest_context=_largest_context(request, mesh, model) if mesh is not None else None,
        largest_k=_largest_k(request, mesh, model) if mesh is not None and request.top_k else None,
        runners_up=tuple(runners_up),
        notes=tuple(_notes(job, work, seconds)),
    )


def _request(job: Job, plan: Plan, model: Dimensions) -> Request:
    """What the job asked of its mesh, from the plan."""
    precision, engines = from_json(Precision, job.settings["precision"]), from_json(Engines, job.settings["engines"])
    stage = stage_of(job)
    copies = 0
    if job.kind == "grpo":
        copies = (engines.rollout == EMBEDDED) + (engines.scorer == EMBEDDED) * bool(stage.reference_kl)
    elif job.kind == "distill":
        copies = embedded_models(stage, engines, len(set(job.settings["routing"].values())))
    return Request(
        model=model,
        cluster=plan.cluster,
        facts={},
        told=frozenset(),
        compute_bytes=4 if precision.compute == "float32" else 2,
        experts_bytes=4 if precision.experts.format == "float32" else 2,
        sequence_tokens=getattr(stage, "sequence_tokens", SHORTEST),
        rows=getattr(stage, "batch_sequences", None),
        top_k=stage.loss.support.top_k or 0 if job.kind == "distill" else 0,
        teacher_values=values_beside(stage.loss, model.vocabulary) if job.kind == "distill" else 0,
        whole_vocabulary=job.kind == "distill" and reads_vocabulary(stage.loss),
        embedded_copies=copies,
    )


def _flops(work: Work, model: Dimensions, mesh: Mesh | None, job: Job) -> tuple[Quantity, ...]:
    """FLOPs of a step: training, generating (every token passes once) and scoring."""
    found: list[Quantity] = []
    tokens, length = work.tokens.value, work.document_tokens
    if work.trained and mesh is not None:
        found.append(flops("training", model, tokens, length, passes_of_training(mesh.activation_checkpoint)))
    if work.rollouts:
        sampled = work.rollouts * length
        found.append(flops("rollouts", model, sampled, length, 1.0))
        if work.scored:
            found.append(flops("scores", model, sampled, length, float(work.scored)))
    return tuple(found)


def _communication(work: Work, model: Dimensions, mesh: Mesh, request: Request) -> tuple[Quantity, ...]:
    tokens = mesh.micro_batch * request.sequence_tokens // mesh.context
    rows = work.tokens.value / request.sequence_tokens
    micro_batches = max(1, ceil(rows / (mesh.data_parallel * mesh.micro_batch)))
    return communication(model, degrees_of(mesh), load_of(request, mesh).formats, tokens, micro_batches)


def _seconds(
    job: Job,
    model: Dimensions,
    work: Work,
    amounts: Sequence[Quantity],
    rates: Rates,
    accelerator: Accelerator,
    engines: Mapping[str, Serving],
) -> tuple[Quantity, ...]:
    """Seconds of a step by role, one after the other; on-policy steps do not overlap here."""
    rate = rates.of(job.kind)
    if rate is None:
        return ()
    trainers = job.roles["trainer"].devices
    if rates.measures(job.kind):  # whole steps, on the trainer's devices
        total = sum(one.value for one in amounts)
        return (_at_rate("a step", total, trainers, rate),)
    found: list[Quantity] = []
    for amount in amounts:
        role = {"rollouts": "rollout", "scores": "scorer"}.get(amount.name, "trainer")
        devices = job.roles[role].devices if role in engines else trainers
        if role == "rollout" and accelerator.memory_gb_per_second is not None:
            engine = engines.get(role) or serving(model, accelerator, 1, work.context_tokens)  # embedded: a copy on every rank
            found.append(_generating(work, engine, devices // job.roles[role].tensor if role in engines else devices, accelerator))
        else:
            found.append(_at_rate(amount.name, amount.value, devices, rate))
    return tuple(found)


def _at_rate(name: str, amount: float, devices: int, rate: float) -> Quantity:
    return Quantity(
        name=name,
        value=amount / (devices * rate),
        unit="seconds",
        formula="F / (n x r): FLOPs on n devices, each at a rate of r",
        inputs={"F": amount, "n": devices, "r": rate},
    )


def _generating(work: Work, engine: Serving, copies: int, accelerator: Accelerator) -> Quantity:
    """Tokens come one after the other; each step of a copy reads its weights and the cache of the sequences that run."""
    assert accelerator.memory_gb_per_second is not None
    each = ceil(work.rollouts / copies)
    at_once = min(each, engine.sequences or 1)
    rounds, length = ceil(each / at_once), work.written_tokens / work.rollouts
    bandwidth = accelerator.memory_gb_per_second * 1e9 * BANDWIDTH_SHARE
    read = engine.weights.value + at_once * engine.cache.value / 2
    return Quantity(
        name="rollouts",
        value=rounds * length * read / bandwidth,
        unit="seconds",
        formula="w x t x (W + s x C / 2) / b: w rounds of t tokens at most; each reads the weights and s half-full caches, at half "
        "of the memory's bandwidth",
        inputs={
            "w": rounds,
            "t": length,
            "W": engine.weights.value,
            "s": at_once,
            "C": engine.cache.value,
            "b": bandwidth,
        },
    )


def _device_hours(job: Job, seconds: Sequence[Quantity], steps: Quantity | None) -> Quantity | None:
    if not seconds or steps is None:
        return None
    each = sum(one.value for one in seconds)
    return Quantity(
        name="device-hours",
        value=steps.value * each * devices_of(job) / 3600,
        unit="hours",
        formula="S x s x n / 3600: steps, seconds of a step, devices of all roles",
        inputs={"S": steps.value, "s": each, "n": devices_of(job)},
    )


def _largest_context(request: Request, mesh: Mesh, model: Dimensions) -> Quantity | None:
    """The longest rows that fit on this mesh, one at a time."""
    limit = request.memory_limit
    if limit is None:
        return None
    one_row = replace(mesh, micro_batch=1)

    def fits(parts: int) -> bool:
        return bytes_of(replace(request, sequence_tokens=parts * SHORTEST), one_row) <= limit

    best = _largest(model.context_tokens // SHORTEST, fits)
    return Quantity(
        name="largest context",
        value=best * SHORTEST,
        unit="tokens",
        formula="the longest row with which all categories of memory still fit, up to the model's context of C",
        inputs={"C": model.context_tokens, "limit": limit},
    )


def _largest_k(request: Request, mesh: Mesh, model: Dimensions) -> Quantity | None:
    """The largest support that fits on this mesh."""
    limit = request.memory_limit
    if limit is None or model.vocabulary is None:
        return None
    best = _largest(model.vocabulary, lambda k: bytes_of(replace(request, top_k=k), mesh) <= limit)
    return Quantity(
        name="largest k",
        value=best,
        unit="tokens",
        formula="the largest support with which all categories of memory still fit, up to the vocabulary of V",
        inputs={"V": model.vocabulary, "limit": limit},
    )


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits; what fits, fits smaller too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _notes(job: Job, work: Work | None, seconds: Sequence[Quantity]) -> list[str]:
    notes: list[str] = []
    if work is None:
        return notes
    if job.kind == "synthesize":
        notes.append("one episode at its limit is counted for each that is wanted; what is refused comes on top")
    elif work.rollouts:
        notes.append("every rollout is counted at its limit: an upper bound")
    if work.steps is None:
        notes.append("the number of steps is not known without a lock that counts tokens: polymath lock")
    if not seconds:
        notes.append("no time: nothing says how fast this machine is; measure with --calibrate")
    return notes
