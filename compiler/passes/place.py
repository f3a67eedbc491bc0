"""place: every training stage gets its mesh, or the reason why it cannot have it."""

from collections.abc import Iterator
from dataclasses import replace

from ...specs.build import Path, Problem
from ...specs.families import dimensions_of
from ...specs.machine import TrainerPlacement
from ...specs.model import Sft, Spec
from ..compilation import Compilation, mistake
from ..plan import Mesh
from ..stages import Stage, stages

# What `auto` aims at for one forward pass of one rank. On-policy batches are padded to whole micro-batches on every rank, so
# large ones would mostly compute padding.
SFT_TOKENS = 8192
ON_POLICY_TOKENS = 1024


def place(compilation: Compilation) -> Compilation:
    """Solve the meshes; each kind's placement is checked once, each batch against its mesh."""
    spec = compilation.spec
    if spec is None:
        return compilation
    mistakes: list[Problem] = []
    meshes: dict[str, Mesh] = {}
    for kind in ("sft", "grpo", "distill"):
        mine = [stage for stage in stages(spec) if stage.kind == kind]
        written = getattr(spec.placement, kind) is not None
        placement, path = placement_of(spec, kind), ("placement", kind, "trainer")
        if not mine and not written:
            continue
        found = list(_check_mesh(placement, path, spec))
        mistakes += found
        if found:
            continue
        for stage in mine:
            mesh = _mesh(placement, stage)
            meshes[stage.id] = mesh
            mistakes += _check_batch(stage, mesh, unit=mesh.data_parallel if placement.micro_batch == "auto" else None)
    return replace(compilation, meshes=meshes).with_mistakes(*mistakes)


def placement_of(spec: Spec, kind: str) -> TrainerPlacement:
    """The placement of a kind of job; where the spec says nothing, every device."""
    block = getattr(spec.placement, kind)
    if block is not None:
        return block.trainer
    return TrainerPlacement(devices=spec.cluster.nodes * spec.cluster.per_node)


def _degree(value: int | str) -> int:
    """A degree, where `auto` asks for no more than one."""
    return 1 if isinstance(value, str) else value


def _inside(placement: TrainerPlacement) -> int:
    """Ranks that work on the same rows."""
    return _degree(placement.tensor) * _degree(placement.context) * _degree(placement.pipeline)


def _shard(placement: TrainerPlacement) -> int:
    if placement.fsdp != "auto":
        return placement.fsdp
    return placement.devices // (_degree(placement.replicate) * _inside(placement))


def _check_mesh(placement: TrainerPlacement, path: Path, spec: Spec) -> Iterator[Problem]:
    cluster = spec.cluster
    there = cluster.nodes * cluster.per_node
    devices, expert, shard = placement.devices, _degree(placement.expert), _shard(placement)
    replicate, inside = _degree(placement.replicate), _inside(placement)
    borrowed = shard * _degree(placement.context) * _degree(placement.tensor)
    if devices > there:
        detail = f"{devices} devices, but {cluster.nodes} x {cluster.per_node} = {there} in `cluster`"
        yield mistake("E0501", (*path, "devices"), detail, f"at most {there}, or a larger `cluster`")
    elif devices > cluster.per_node and devices % cluster.per_node:
        detail = f"{devices} devices do not fill machines of {cluster.per_node}"
        yield mistake("E0506", (*path, "devices"), detail, f"a multiple of {cluster.per_node}, or fewer than that")
    if replicate * shard * inside != devices:
        within = f" x {inside} within a row" if inside > 1 else ""
        detail = f"replicate {replicate} x fsdp {shard}{within} = {replicate * shard * inside}, but there are {devices} devices"
        where = "replicate" if placement.fsdp == "auto" else "fsdp"
        fix = f"`replicate` must divide {devices // inside}" if placement.fsdp == "auto" else "write `fsdp: auto`"
        yield mistake("E0502", (*path, where), detail, fix)
    elif borrowed % expert:
        fitting = max(degree for degree in range(1, borrowed + 1) if borrowed % degree == 0 and degree <= expert)
        detail = f"expert degree {expert} does not divide the {borrowed} shards"
        yield mistake("E0503", (*path, "expert"), detail, f"nearest that does: {fitting}")
    model = dimensions_of(spec.model)
    if model is not None and model.experts % expert:
        fitting = max(degree for degree in range(1, expert + 1) if model.experts % degree == 0)
        detail = f"{expert} does not divide the model's {model.experts} experts"
        yield mistake("E0504", (*path, "expert"), detail, f"nearest that does: {fitting}")


def _mesh(placement: TrainerPlacement, stage: Stage) -> Mesh:
    shard = _shard(placement)
    micro_batch = placement.micro_batch
    if micro_batch == "auto":
        aim = SFT_TOKENS if isinstance(stage.block, Sft) else ON_POLICY_TOKENS
        micro_batch = max(1, aim // stage.block.sequence_tokens)
        if isinstance(stage.block, Sft):  # the largest share of a rank's rows that is not above the aim
            rows = max(1, stage.block.batch_sequences // (_degree(placement.replicate) * shard))
            micro_batch = max(size for size in range(1, min(micro_batch, rows) + 1) if rows % size == 0)
    return Mesh(
        devices=placement.devices,
        replicate=_degree(placement.replicate),
        shard=shard,
        expert=_degree(placement.expert),
        micro_batch=micro_batch,
        tensor=_degree(placement.tensor),
        context=_degree(placement.context),
        pipeline=_degree(placement.pipeline),
        activation_checkpoint="none" if placement.activation_checkpoint == "auto" else placement.activation_checkpoint,
    )


def _check_batch(stage: Stage, mesh: Mesh, unit: int | None) -> Iterator[Problem]:
    """Only SFT has a fixed number of rows; on-policy batches are padded to fit. `unit` divides them where the rest is chosen."""
    if not isinstance(stage.block, Sft):
        return
    rows, at_once = stage.block.batch_sequences, "" if unit else f" x {mesh.micro_batch} rows at once"
    unit = unit or mesh.data_parallel * mesh.micro_batch
    if rows % unit:
        detail = f"{rows} rows cannot be divided by {mesh.data_parallel} ranks{at_once}"
        near = ", ".join(str(size) for size in sorted({rows // unit * unit, rows // unit * unit + unit}) if size)
        yield mistake("E0505", (*stage.path, "batch_sequences"), detail, f"nearest that can: {near}")
