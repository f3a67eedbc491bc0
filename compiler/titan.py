"""What a stage says in torchtitan's own words: overrides of its `Trainer.Config` (torchtitan 0.3.0), in a closed, tagged form.

A field appears where torchtitan has one and the spec decides it. What depends on the data (the steps of `epochs`) or is settled
batch by batch (the rows of an on-policy step) is left to the runtime, which records the configuration it resolved.
"""

from collections.abc import Iterator

from ..specs.model import GrpoPhase, Sft, Spec
from .capability import choose
from .plan import Mesh, Override
from .stages import Block, Stage

ADAM_EPSILON = 1e-8
CONSTANT = 1.0  # torchtitan has no constant schedule; a decay that ends at the peak is constant


def overrides(spec: Spec, stage: Stage, mesh: Mesh, seed: int) -> tuple[Override, ...]:
    """The settings of one training stage."""
    return tuple(Override(path=path, value=value) for path, value in _settings(spec, stage.block, mesh, seed))


def known_steps(block: Block) -> int | None:
    """Optimizer steps, where the spec alone decides them."""
    return block.steps * block.updates if isinstance(block, GrpoPhase) else block.steps


def _settings(spec: Spec, block: Block, mesh: Mesh, seed: int) -> Iterator[tuple[str, object]]:
    steps = known_steps(block)
    yield "debug.seed", seed
    yield "training.seq_len", block.sequence_tokens
    yield "training.local_batch_size", mesh.micro_batch
    if isinstance(block, Sft):
        yield "training.global_batch_size", block.batch_sequences
    if steps is not None:
        yield "training.steps", steps
    yield "training.max_norm", block.clip_norm
    yield "training.mixed_precision_param", spec.precision.compute
    yield "parallelism.data_parallel_replicate_degree", mesh.replicate
    yield "parallelism.data_parallel_shard_degree", mesh.shard
    yield "parallelism.expert_parallel_degree", mesh.expert
    yield "parallelism.tensor_parallel_degree", mesh.tensor
    yield "parallelism.context_parallel_degree", mesh.context
    yield "parallelism.pipeline_parallel_degree", mesh.pipeline
    yield "parallelism.spmd_backend", choose("spmd_backend", {"torch": spec.cluster.software.torch}).value
    adam = {"lr": block.learning_rate, "betas": list(block.betas), "eps": ADAM_EPSILON, "weight_decay": block.weight_decay}
    for name, value in adam.items():
        yield f"optimizer.param_groups.0.optimizer_kwargs.{name}", value
    if steps is not None:
        yield "lr_scheduler.warmup_steps", round(block.warmup * steps)
    yield "lr_scheduler.decay_type", "cosine" if block.schedule == "cosine" else "linear"
    yield "lr_scheduler.min_lr_factor", CONSTANT if block.schedule == "constant" else block.final_lr_fraction
    yield "checkpoint.interval", spec.checkpoint.every_steps
    yield "checkpoint.keep_latest_k", spec.checkpoint.keep
