"""place: every training stage gets the cheapest mesh that fits, or the reason why it cannot have one.

What a spec writes is kept; what it leaves open is solved from the estimate. Runners-up are remembered for `polymath estimate`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...specs.build import Path, Problem
from ...specs.distillation import Distill
from ...specs.families import Dimensions
from ...specs.hardware import ACCELERATORS
from ...specs.machine import TrainerPlacement
from ...specs.model import GrpoPhase, Sft, Spec
from ..capability import broken_limits
from ..compilation import Compilation, mistake
from ..estimates.degrees import Degrees
from ..estimates.quantity import with_unit
from ..estimates.serving import LARGEST_COPY, serving, smallest_copy
from ..facts import facts_of_mesh, facts_of_spec
from ..losses import embedded_models, reads_vocabulary, values_beside
from ..meshes import Candidate, Request, bytes_of, candidates, degrees_of, distance, divides_rows, layouts, limits_of, opened
from ..plan import Mesh
from ..stages import Stage, played, stages
from .roles import ROLES_OF
from .serve import longest_context

RUNNERS_UP = 3
KINDS = ("sft", "grpo", "distill")
MESH_FIELDS = {"fsdp": "shard"}  # where the mesh calls a field of `placement` otherwise
OPEN_FIELDS = ("expert", "tensor", "context", "pipeline", "replicate", "fsdp")  # one value for all jobs of a kind


def place(compilation: Compilation) -> Compilation:
    """Solve the meshes; each kind's placement is checked once, each batch against its mesh."""
    spec = compilation.spec
    if spec is None:
        return compilation
    facts = facts_of_spec(spec, compilation.dimensions)
    compilation = compilation.with_mistakes(*_check_without_mesh(spec, facts), *_check_budget(spec))
    meshes: dict[str, Mesh] = {}
    runners_up: dict[str, tuple[Candidate, ...]] = {}
    for kind in KINDS:
        mine = [stage for stage in stages(spec) if stage.kind == kind]
        if not mine and getattr(spec.placement, kind) is None:
            continue
        placement, path = placement_of(spec, kind), ("placement", kind, "trainer")
        found = list(_check_mesh(placement, path, compilation))
        compilation = compilation.with_mistakes(*found)
        if found:
            continue
        told: set[tuple[str, Path]] = set()  # stages of a kind share their placement, and so its mistakes
        for stage in mine:
            request = request_of(compilation, spec, stage, facts)
            some = list(layouts(placement, request.model, on_gpu=request.on_gpu))
            ranked = _ranked(request, placement, some)
            if not ranked or not _fits(request, ranked[0]):
                deeper = list(layouts(placement, request.model, on_gpu=request.on_gpu, deep=True))
                ranked = _ranked(request, placement, deeper) or ranked
            if not ranked or not _fits(request, ranked[0]):
                found = [_too_large(stage, request, placement, path, ranked[0])] if ranked else []
                found = found or list(_why_none(stage, request, placement, path, some))
                compilation = compilation.with_mistakes(*(one for one in found if (one.code, one.path) not in told))
                told |= {(one.code, one.path) for one in found}
            else:
                meshes[stage.id] = ranked[0].mesh
                runners_up[stage.id] = tuple(one for one in ranked[1 : RUNNERS_UP + 1] if _fits(request, one))
                compilation = _remember(compilation, stage, placement, path, request, ranked)
    return replace(compilation, meshes=meshes, runners_up=runners_up)


def placement_of(spec: Spec, kind: str) -> TrainerPlacement:
    """The placement of a kind of job; where the spec says nothing, every device."""
    block = getattr(spec.placement, kind)
    if block is not None:
        return block.trainer
    return TrainerPlacement(devices=spec.cluster.nodes * spec.cluster.per_node)


def request_of(compilation: Compilation, spec: Spec, stage: Stage, facts: dict[str, object]) -> Request:
    """What a stage asks of its mesh."""
    block, engines, copies = stage.block, spec.engines, 0
    if isinstance(block, GrpoPhase):
        copies = (engines.rollout == "transformers") + (engines.scorer == "transformers") * bool(block.reference_kl)
    elif isinstance(block, Distill):
        copies = embedded_models(block, engines, len(set(compilation.owners.values())))
    vocabulary = compilation.dimensions.vocabulary if compilation.dimensions is not None else None
    return Request(
        model=compilation.dimensions,
        cluster=spec.cluster,
        facts=facts,
        told=frozenset(limit.name for limit in broken_limits(facts)),
        compute_bytes=4 if spec.precision.compute == "float32" else 2,
        experts_bytes=4 if spec.precision.experts.format == "float32" else 2,
        sequence_tokens=block.sequence_tokens,
        rows=block.batch_sequences if isinstance(block, Sft) else None,
        top_k=block.loss.support.top_k or 0 if isinstance(block, Distill) else 0,
        teacher_values=values_beside(block.loss, vocabulary) if isinstance(block, Distill) else 0,
        whole_vocabulary=isinstance(block, Distill) and reads_vocabulary(block.loss),
        embedded_copies=copies,
        beside_bytes=_beside(spec, stage, compilation.dimensions),
    )


def _beside(spec: Spec, stage: Stage, model: Dimensions | None) -> float:
    """Bytes that engines take on the trainer's devices: weights, and the cache of one episode."""
    block = getattr(spec.placement, stage.kind)
    if block is None or model is None:
        return 0.0
    accelerator, context = ACCELERATORS[spec.cluster.accelerator], longest_context(spec)
    shared = [role for name in ROLES_OF.get(stage.kind, ()) if (role := getattr(block, name)) is not None and role.shared]
    sizes = [role.tensor if role.tensor != "auto" else smallest_copy(model, accelerator, role.devices, context) for role in shared]
    served = [serving(model, accelerator, size or LARGEST_COPY, context) for size in sizes]
    return sum(one.weights.value + one.cache.value for one in served)


def _fits(request: Request, candidate: Candidate) -> bool:
    return request.memory_limit is None or candidate.bytes <= request.memory_limit


def _ranked(request: Request, placement: TrainerPlacement, some: Sequence[Degrees]) -> list[Candidate]:
    """The candidates, those that fit first, then the cheapest, then the plainest."""
    return sorted(
        candidates(request, placement, some),
        key=lambda one: (
            not _fits(request, one),
            one.seconds if _fits(request, one) else one.bytes,
            _splits(one.mesh),
        ),
    )


def _splits(mesh: Mesh) -> tuple[int, ...]:
    return (mesh.expert, mesh.tensor, mesh.context, mesh.pipeline, mesh.replicate)


def _remember(
    compilation: Compilation, stage: Stage, placement: TrainerPlacement, path: Path, request: Request, ranked: Sequence[Candidate]
) -> Compilation:
    """Say of every open value what it became and why."""
    mesh, fitting = ranked[0].mesh, sum(_fits(request, one) for one in ranked)
    limit = request.memory_limit
    memory = f" in {with_unit(ranked[0].bytes, 'bytes')} of {with_unit(limit, 'bytes')}" if limit is not None else ""
    reason = f"the cheapest of {fitting} meshes{memory}" if len(ranked) > 1 else f"the only mesh{memory}"
    for field in OPEN_FIELDS:
        if getattr(placement, field) == "auto":
            value = getattr(mesh, MESH_FIELDS.get(field, field))
            left = f"{placement.devices} devices / {placement.devices // value}" if field == "fsdp" else reason
            compilation = compilation.decided((*path, field), value, by="place", reason=left)
    at = ("jobs", stage.id, "roles", "trainer", "mesh")
    for field, why in (("micro_batch", "rows at once"), ("activation_checkpoint", reason)):
        if getattr(placement, field) == "auto":
            why = f"{mesh.micro_batch * request.sequence_tokens} tokens in one pass" if field == "micro_batch" else why
            compilation = compilation.decided((*at, field), getattr(mesh, field), by="place", reason=why)
    why = "the logits of a row fit, or the loss needs none"
    if mesh.loss_chunks > 1:
        why = "all logits of a row at once would not fit"
    return compilation.decided((*at, "loss_chunks"), mesh.loss_chunks, by="place", reason=why)


def _check_without_mesh(spec: Spec, facts: dict[str, object]) -> Iterator[Problem]:
    """What no mesh could help: engines, number formats, software."""
    acts = {"rollout": False, "scorer": False}
    for stage in stages(spec):
        acts["rollout"] |= not isinstance(stage.block, Sft)
        acts["scorer"] |= isinstance(stage.block, Distill) or (
            isinstance(stage.block, GrpoPhase) and bool(stage.block.reference_kl)
        )
    acts["rollout"] |= spec.evaluate is not None or any(one.models for one in played(spec))
    for limit in broken_limits({name: fact for name, fact in facts.items() if acts.get(name, True)}):
        detail = f"{limit.why(facts)} ({limit.source})"
        yield mistake("E0509", tuple(limit.blames.split(".")), detail, f"write {limit.instead}")


def _check_budget(spec: Spec) -> Iterator[Problem]:
    """The roles of a job run at the same time, so that together they must fit."""
    there = spec.cluster.nodes * spec.cluster.per_node
    for kind in (*KINDS, "synthesize", "evaluate"):
        block = getattr(spec.placement, kind)
        if block is None:
            continue
        roles = {name: getattr(block, name, None) for name in ("trainer", "rollout", "scorer")}
        own = {name: role for name, role in roles.items() if role is not None and not (name != "trainer" and role.shared)}
        devices = {name: role.devices for name, role in own.items()}
        if not devices:
            continue  # `roles` says why that cannot be
        if sum(devices.values()) > there and max(devices.values()) <= there:
            table = " + ".join(f"{name} {count}" for name, count in devices.items())
            detail = f"{table} = {sum(devices.values())} devices, but the cluster has {there}"
            yield mistake("E0508", ("placement", kind), detail, "take devices from a role, or add machines", at_key=True)
        elif max(devices.values()) > there and "trainer" not in devices:
            detail = f"{max(devices.values())} devices, but the cluster has {there}"
            yield mistake("E0508", ("placement", kind), detail, f"at most {there}, or a larger `cluster`", at_key=True)


def _check_mesh(placement: TrainerPlacement, path: Path, compilation: Compilation) -> Iterator[Problem]:
    """What is wrong with the numbers alone."""
    assert compilation.spec is not None
    cluster, model = compilation.spec.cluster, compilation.dimensions
    there, devices = cluster.nodes * cluster.per_node, placement.devices
    if devices > there:
        detail = f"{devices} devices, but {cluster.nodes} x {cluster.per_node} = {there} in `cluster`"
        yield mistake("E0501", (*path, "devices"), detail, f"at most {there}, or a larger `cluster`")
    elif devices > cluster.per_node and devices % cluster.per_node:
        detail = f"{devices} devices do not fill machines of {cluster.per_node}"
        yield mistake("E0506", (*path, "devices"), detail, f"a multiple of {cluster.per_node}, or fewer than that")
    if next(layouts(placement, model, on_gpu=ACCELERATORS[cluster.accelerator].is_gpu), None) is None:
        yield _why_no_layout(placement, path, model.experts if model is not None else None)


def _why_no_layout(placement: TrainerPlacement, path: Path, experts: int | None) -> Problem:
    """Why no degrees fill the devices, counting what is open as 1."""
    one = {name: value if isinstance(value, int) else 1 for name in OPEN_FIELDS if (value := getattr(placement, name))}
    devices, replicate, expert = placement.devices, one["replicate"], one["expert"]
    inside = one["tensor"] * one["context"] * one["pipeline"]
    shard = devices // (replicate * inside) if placement.fsdp == "auto" else one["fsdp"]
    borrowed = shard * one["context"] * one["tensor"]
    if replicate * shard * inside != devices:
        within = f" x {inside} within a row" if inside > 1 else ""
        detail = f"replicate {replicate} x fsdp {shard}{within} = {replicate * shard * inside}, but there are {devices} devices"
        where = "replicate" if placement.fsdp == "auto" else "fsdp"
        fix = f"`replicate` must divide {devices // inside}" if placement.fsdp == "auto" else "write `fsdp: auto`"
        return mistake("E0502", (*path, where), detail, fix)
    if experts is not None and experts % expert:
        fitting = max(degree for degree in range(1, expert + 1) if experts % degree == 0)
        detail = f"{expert} does not divide the model's {experts} experts"
        return mistake("E0504", (*path, "expert"), detail, f"nearest that does: {fitting}")
    fitting = max(degree for degree in range(1, borrowed + 1) if borrowed % degree == 0 and degree <= expert)
    detail = f"expert degree {expert} does not divide the {borrowed} shards"
    return mistake("E0503", (*path, "expert"), detail, f"nearest that does: {fitting}")


def _why_none(
    stage: Stage, request: Request, placement: TrainerPlacement, path: Path, some: Sequence[Degrees]
) -> Iterator[Problem]:
    """Why no layout divides the rows or is in the table."""
    broken = {degrees: limits_of(request, degrees) for degrees in some}
    possible = [degrees for degrees in some if not broken[degrees]]
    if not possible:
        least = min(some, key=lambda degrees: (len(broken[degrees]), degrees.devices // degrees.data))
        for limit in broken[least]:
            facts = {**request.facts, **facts_of_mesh(least, request.sequence_tokens)}
            yield mistake("E0509", (*path, limit.blames), f"{limit.why(facts)} ({limit.source})", _nearest(request, placement))
        return
    assert isinstance(stage.block, Sft)
    rows = stage.block.batch_sequences
    degrees = min(possible, key=lambda one: one.data)
    at_once = placement.micro_batch if isinstance(placement.micro_batch, int) else 1
    unit = degrees.data * at_once
    detail = f"{rows} rows cannot be divided by {degrees.data} ranks{f' x {at_once} rows at once' if at_once > 1 else ''}"
    near = ", ".join(str(size) for size in sorted({rows // unit * unit, rows // unit * unit + unit}) if size)
    yield mistake("E0505", (*stage.path, "batch_sequences"), detail, f"nearest that can: {near}")


def _nearest(request: Request, placement: TrainerPlacement) -> str:
    """The legal layout of the same devices that is nearest to what is written."""
    free = layouts(opened(placement), request.model, on_gpu=request.on_gpu, deep=True)
    legal = [one for one in free if divides_rows(request, one, placement.micro_batch) and not limits_of(request, one)]
    if not legal:
        return f"no mesh of {placement.devices} devices can"
    near = min(legal, key=lambda one: (distance(one, placement), one.pipeline, one.context, one.tensor))
    return f"nearest that can: {describe(near)}"


def describe(degrees: Degrees) -> str:
    """A layout in the spec's words, without what is 1."""
    named = {name: getattr(degrees, MESH_FIELDS.get(name, name)) for name in OPEN_FIELDS}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value > 1) or "every degree 1"


def _too_large(stage: Stage, request: Request, placement: TrainerPlacement, path: Path, best: Candidate) -> Problem:
    """What is missing, and what would do."""
    limit = request.memory_limit
    assert limit is not None
    gib = ACCELERATORS[request.cluster.accelerator].memory_gib
    detail = (
        f"`{stage.id}` needs {with_unit(best.bytes, 'bytes')} on its fullest rank at least ({describe(degrees_of(best.mesh))}); "
        f"of {gib:g} GiB, tensors may fill {with_unit(limit, 'bytes')}"
    )
    free = opened(placement)
    near = [
        one
        for one in _ranked(request, free, list(layouts(free, request.model, on_gpu=request.on_gpu, deep=True)))
        if _fits(request, one)
    ]
    if near:
        nearest = min(near, key=lambda one: (distance(degrees_of(one.mesh), placement), one.seconds))
        return mistake("E0507", path, detail, f"nearest that fits: {describe(degrees_of(nearest.mesh))}", at_key=True)
    longest = request.sequence_tokens
    while longest > 64 and bytes_of(replace(request, sequence_tokens=longest), best.mesh) > limit:
        longest //= 2
    fix = f"more devices, or rows of {longest} tokens" if longest > 64 else "more devices, or a smaller model"
    return mistake("E0507", path, detail, fix, at_key=True)
