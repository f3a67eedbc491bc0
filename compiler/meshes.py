"""Which meshes a training stage could run on, what each needs and takes, and which is the cheapest that fits.

A few dozen meshes, all arithmetic: degrees are powers of two, and what the spec writes is kept. `place` explains the outcome.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import log2
from typing import Any

from ..specs.families import Dimensions
from ..specs.hardware import ACCELERATORS
from ..specs.machine import Cluster, TrainerPlacement
from .capability import Limit, broken_limits
from .estimates.activations import Formats
from .estimates.compute import communication, forward_flops, passes_of_training
from .estimates.degrees import Degrees
from .estimates.memory import USABLE, Load, memory
from .estimates.quantity import GIB
from .estimates.rates import Rates
from .facts import facts_of_mesh
from .plan import Mesh

# What `auto` aims at for one forward pass of one rank. On-policy batches are padded to whole micro-batches on every rank, so
# large ones would mostly compute padding.
SFT_TOKENS = 8192
ON_POLICY_TOKENS = 1024
HEAD_TOKENS = 2048  # with logits of so many positions at once, the loss takes little memory beside the rest
NOMINAL_FLOPS = 50e9  # of a device without a figure; only the order of meshes depends on it
NOMINAL_LINK = 5e9  # bytes per second between devices without a figure
NETWORK = 50e9  # bytes per second and device between machines: one 400 Gbit/s port for each (assumed)
COLLECTIVE_SECONDS = {True: 30e-6, False: 500e-6}  # to start one, on a GPU or not (assumed)
DEGREES = ("replicate", "fsdp", "expert", "tensor", "context", "pipeline")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a stage asks of its mesh, whatever the mesh."""

    model: Dimensions | None
    cluster: Cluster
    facts: Mapping[str, Any]  # of the spec
    told: frozenset[str]  # limits that the spec breaks whatever the mesh
    compute_bytes: int
    experts_bytes: int
    sequence_tokens: int
    rows: int | None  # of an optimizer step; None where batches are padded to fit
    top_k: int = 0
    teacher_values: int = 0
    whole_vocabulary: bool = False
    embedded_copies: int = 0
    beside_bytes: float = 0.0  # of engines on the trainer's devices

    @property
    def on_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return ACCELERATORS[self.cluster.accelerator].is_gpu

    @property
    def memory_limit(self) -> float | None:
        """Bytes that the trainer's tensors may fill on a device."""
        gib = ACCELERATORS[self.cluster.accelerator].memory_gib
        return None if gib is None else gib * GIB * USABLE - self.beside_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A mesh that the numbers allow."""

    mesh: Mesh
    bytes: float  # on the fullest rank; 0 where the model's size is not known
    seconds: float  # device-seconds of one row, modelled; for comparison only


def degrees_of(mesh: Mesh) -> Degrees:
    """The mesh as the formulas see it."""
    return Degrees(
        replicate=mesh.replicate,
        shard=mesh.shard,
        expert=mesh.expert,
        tensor=mesh.tensor,
        context=mesh.context,
        pipeline=mesh.pipeline,
    )


def layouts(placement: TrainerPlacement, model: Dimensions | None, *, on_gpu: bool, deep: bool = False) -> Iterator[Degrees]:
    """Every way to fill the devices; pipeline and context degrees that are open are 1, unless `deep`. Processors share their
    memory, so rows are never split over them unasked."""
    devices = placement.devices
    deep = deep and on_gpu
    for tensor, context, pipeline, replicate in product(
        _options(placement.tensor, devices, at_most=8 if model is not None and on_gpu else 1),
        _options(placement.context, devices, at_most=8 if deep else 1),
        _options(placement.pipeline, devices, at_most=8 if deep else 1),
        _options(placement.replicate, devices, at_most=devices),
    ):
        inside = tensor * context * pipeline * replicate
        if devices % inside:
            continue
        shard = devices // inside
        if placement.fsdp not in ("auto", shard):
            continue
        borrowed = shard * context * tensor
        for expert in _options(placement.expert, borrowed, at_most=borrowed if model is not None else 1):
            if borrowed % expert == 0 and (model is None or model.experts % expert == 0):
                yield Degrees(replicate=replicate, shard=shard, expert=expert, tensor=tensor, context=context, pipeline=pipeline)


def _options(value: int | str, devices: int, *, at_most: int) -> Sequence[int]:
    if isinstance(value, int):
        return (value,)
    return [2**power for power in range(devices.bit_length()) if 2**power <= min(devices, at_most)]


def divides_rows(request: Request, degrees: Degrees, micro_batch: int | str = "auto") -> bool:
    """Whether every rank gets as many rows, in whole micro-batches."""
    each = degrees.data * (micro_batch if isinstance(micro_batch, int) else 1)
    return request.rows is None or request.rows % each == 0


def limits_of(request: Request, degrees: Degrees) -> list[Limit]:
    """The limits that a layout breaks."""
    facts = {**request.facts, **facts_of_mesh(degrees, request.sequence_tokens)}
    return [limit for limit in broken_limits(facts) if limit.name not in request.told]


def candidates(request: Request, placement: TrainerPlacement, some: Sequence[Degrees]) -> Iterator[Candidate]:
    """The layouts that divide the rows and that the capability table allows, with their cheapest settings that fit; where
    none fit, with those that need the least memory."""
    limit = request.memory_limit
    for degrees in some:
        if not divides_rows(request, degrees, placement.micro_batch):
            continue
        if limits_of(request, degrees):
            continue
        settings = [_measured(request, mesh) for mesh in _settings(request, placement, degrees)]
        fitting = [one for one in settings if limit is None or one.bytes <= limit]
        yield min(fitting, key=lambda one: one.seconds) if fitting else min(settings, key=lambda one: one.bytes)


def _settings(request: Request, placement: TrainerPlacement, degrees: Degrees) -> Iterator[Mesh]:
    """A layout's micro-batches, checkpointing and cuts of the loss, from the plainest on."""
    aim = ON_POLICY_TOKENS if request.rows is None else SFT_TOKENS
    most = max(1, aim // request.sequence_tokens)
    if isinstance(placement.micro_batch, int):
        sizes = [placement.micro_batch]
    elif request.rows is None:
        sizes = sorted({most, 1}, reverse=True)
    else:  # the largest share of a rank's rows that is not above the aim, and the smallest
        rows = max(1, request.rows // degrees.data)
        sizes = sorted({max(size for size in range(1, min(most, rows) + 1) if rows % size == 0), 1}, reverse=True)
    chosen = placement.activation_checkpoint
    for size in sizes:
        for checkpointing in ("none", "selective", "full") if chosen == "auto" else (chosen,):
            mesh = Mesh(
                devices=degrees.devices,
                replicate=degrees.replicate,
                shard=degrees.shard,
                expert=degrees.expert,
                micro_batch=size,
                tensor=degrees.tensor,
                context=degrees.context,
                pipeline=degrees.pipeline,
                activation_checkpoint=checkpointing,
            )
            yield replace(mesh, loss_chunks=_loss_chunks(request, mesh))


def _loss_chunks(request: Request, mesh: Mesh) -> int:
    """1 where the logits of all positions fit, or there are none; else as many as leave few positions at once: that is cheap."""
    if request.top_k or request.whole_vocabulary:
        return 1
    limit, tokens = request.memory_limit, mesh.micro_batch * request.sequence_tokens // mesh.context
    if request.model is None or limit is None or bytes_of(request, mesh) <= limit:
        return 1
    chunks = 1
    while tokens // chunks > HEAD_TOKENS and request.sequence_tokens % (2 * chunks) == 0:
        chunks *= 2
    return chunks


def load_of(request: Request, mesh: Mesh) -> Load:
    """What a rank of this mesh holds."""
    return Load(
        rows=mesh.micro_batch,
        sequence_tokens=request.sequence_tokens,
        formats=Formats(
            compute=request.compute_bytes,
            experts=request.experts_bytes,
            fused_norms=request.on_gpu,
            checkpointing=mesh.activation_checkpoint,
        ),
        head_tokens=mesh.micro_batch * request.sequence_tokens // mesh.context // mesh.loss_chunks,
        top_k=request.top_k,
        teacher_values=request.teacher_values,
        whole_vocabulary=request.whole_vocabulary,
        embedded_copies=request.embedded_copies,
    )


def bytes_of(request: Request, mesh: Mesh) -> float:
    """Memory of the fullest rank."""
    return 0.0 if request.model is None else memory(request.model, degrees_of(mesh), load_of(request, mesh)).total


def _measured(request: Request, mesh: Mesh) -> Candidate:
    return Candidate(mesh=mesh, bytes=bytes_of(request, mesh), seconds=seconds_of(request, mesh))


def seconds_of(request: Request, mesh: Mesh) -> float:
    """Device-seconds of one row: its products at the accelerator's rate, then its share of every collective, none overlapped."""
    if request.model is None:
        return float(mesh.devices)
    accelerator, degrees = ACCELERATORS[request.cluster.accelerator], degrees_of(mesh)
    tokens = request.sequence_tokens // degrees.context
    rate = Rates(accelerator=request.cluster.accelerator).of("sft") or NOMINAL_FLOPS
    share = degrees.tensor * degrees.pipeline
    compute = passes_of_training(mesh.activation_checkpoint) * tokens * _flops_per_token(request) / (rate * share)
    bubble = 1 + (degrees.pipeline - 1) / max(1, mesh.micro_batch)
    link = accelerator.link_gb_per_second * 1e9 if accelerator.link_gb_per_second else NOMINAL_LINK
    between = {"gradients between replicas": degrees.devices, "pipeline": degrees.devices, "tensor parallel": degrees.tensor}
    between["tokens to experts"] = degrees.expert
    sharded = degrees.fsdp * degrees.tensor
    load = load_of(request, mesh)
    per_node = request.cluster.per_node
    moved = communication(request.model, degrees, load.formats, tokens * mesh.micro_batch, 1)
    sending = sum(one.value / (link if between.get(one.name, sharded) <= per_node else NETWORK) for one in moved)
    layers = request.model.layers / degrees.pipeline
    started = layers * (3 * (degrees.fsdp > 1) + 8 * (degrees.expert > 1) + 8 * (degrees.tensor > 1)) + mesh.loss_chunks
    waiting = started * COLLECTIVE_SECONDS[accelerator.is_gpu]
    return (compute * bubble + (sending + waiting) / mesh.micro_batch) * degrees.devices / degrees.data


@cache
def _attended(model: Dimensions, sequence_tokens: int) -> float:
    return forward_flops(model, sequence_tokens / 2)


def _flops_per_token(request: Request) -> float:
    assert request.model is not None
    return _attended(request.model, request.sequence_tokens)


def distance(degrees: Degrees, placement: TrainerPlacement) -> float:
    """How far a layout is from what the spec writes, in doublings."""
    written = {name: getattr(placement, name) for name in DEGREES}
    mine = {name: getattr(degrees, "shard" if name == "fsdp" else name) for name in DEGREES}
    return sum(abs(log2(mine[name] / value)) for name, value in written.items() if isinstance(value, int))


def opened(placement: TrainerPlacement) -> TrainerPlacement:
    """The same devices with every degree left open."""
    return TrainerPlacement(devices=placement.devices, replicate="auto", micro_batch=placement.micro_batch)


def described(mesh: Mesh) -> str:
    """A mesh in the spec's words, without what is 1."""
    names = {"fsdp": mesh.shard, **{name: getattr(mesh, name) for name in DEGREES if name != "fsdp"}}
    parts = [f"{name} {value}" for name, value in names.items() if value > 1]
    parts += [f"micro_batch {mesh.micro_batch}", f"{mesh.activation_checkpoint.replace('none', 'no')} checkpointing"]
    parts += [f"loss in {mesh.loss_chunks} parts"] if mesh.loss_chunks > 1 else []
    return ", ".join(parts)
