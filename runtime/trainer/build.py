"""Builds the trainer of a job: torchtitan's config from the plan, the model from the start folder."""

import dataclasses
from pathlib import Path

import torch
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torchtitan.components.optimizer import LRSchedulersContainer, ParamGroupConfig
from torchtitan.config import CommConfig, DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import utils as titan_distributed
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.tools.logging import init_logger

from ...compiler.plan import Mesh
from ...specs.machine import Precision
from ...specs.training import Optimization
from ..checkpoints.manager import PublishingCheckpointManager
from ..jobs import JobContext
from . import bootstrap
from .guard import GuardedOptimizers
from .metrics import StepMetrics
from .model import model_spec
from .overrides import apply_overrides
from .trainer import NoDataLoader, NoTokenizer, PolymathTrainer, StageLoss

ADAMW_SETTINGS = ("lr", "betas", "eps", "weight_decay")  # the plan's overrides fill them
COLLECTIVE_TIMEOUT_SECONDS = 1800  # a rank may wait while another finishes its rollouts


def start_distributed() -> None:
    """Join the ranks of this torchrun invocation, once for all its jobs."""
    init_logger()
    # Ranks agree on more than what lies on a device; on CPUs there is one backend for both.
    titan_distributed.init_distributed(_communication(), enable_cpu_backend=not bootstrap.ON_CPU)


def build_trainer(context: JobContext, optimization: Optimization, *, steps: int) -> PolymathTrainer:
    """The trainer of a job, not yet loaded: `run` loads the last checkpoint or the start weights."""
    # The mesh of this process's last job is equal to ours, but FSDP2 wants the very same object (torch 2.15), and DTensor's caches
    # would give it the older one.
    _clear_sharding_prop_cache()
    torch.manual_seed(context.job.seed)
    return trainer_config(context, optimization, steps=steps).build()


def trainer_config(context: JobContext, optimization: Optimization, *, steps: int) -> PolymathTrainer.Config:
    """torchtitan's config of a job.

    What the plan knows comes from the plan's overrides; what only the data can tell (the number of steps, and so of warm-up steps)
    from `steps`.
    """
    start_folder = context.input_folder("model")
    config = base_config()
    experts = context.setting("precision", Precision).experts
    config.model_spec = model_spec(start_folder, experts=experts, recipe=context.job.settings.get("experts_recipe"))
    config.hf_assets_path = str(start_folder)
    config.dump_folder = str(context.folder)
    config.metrics.path = str(context.folder / "metrics.jsonl")
    config.checkpoint.initial_load_path = str(start_folder.resolve())
    config.checkpoint.recipe_digest = context.job.recipe_digest
    config.training.steps = steps
    config.lr_scheduler.warmup_steps = round(optimization.warmup * steps)
    config.activation_checkpoint = _activation_checkpoint(context.job.roles["trainer"].mesh)
    apply_overrides(config, context.job.titan)
    assert config.training.steps == steps, f"the plan says {config.training.steps} steps, the stage {steps}"
    return config


def base_config() -> PolymathTrainer.Config:
    """What is the same for every job; the plan's overrides set the rest."""
    adamw = ParamGroupConfig(pattern=".*", optimizer_name="AdamW", optimizer_kwargs=dict.fromkeys(ADAMW_SETTINGS))
    return PolymathTrainer.Config(
        tokenizer=NoTokenizer.Config(),
        dataloader=NoDataLoader.Config(),
        loss=StageLoss.Config(),
        optimizer=GuardedOptimizers.Config(param_groups=[adamw], implementation="foreach" if bootstrap.ON_CPU else "fused"),
        lr_scheduler=LRSchedulersContainer.Config(),
        metrics=StepMetrics.Config(log_freq=1, enable_tensorboard=True, save_tb_folder="tensorboard", disable_color_printing=True),
        training=TrainingConfig(disable_cuda_graphs=True, gc_freq=1000),
        parallelism=ParallelismConfig(),
        checkpoint=PublishingCheckpointManager.Config(
            enable=True, folder="checkpoints", initial_load_in_hf=True, last_save_model_only=False
        ),
        activation_checkpoint=None,
        comm=_communication(),
        debug=DebugConfig(deterministic=True, enable_structured_logging=False),
    )


def _activation_checkpoint(mesh: Mesh | None) -> FullAC.Config | SelectiveAC.Config | None:
    """What the plan says of activations: kept, some computed anew in the backward pass, or all of a layer."""
    if mesh is None or mesh.activation_checkpoint == "none":
        return None
    return {"selective": SelectiveAC.Config, "full": FullAC.Config}[mesh.activation_checkpoint]()


def publish_model(trainer: PolymathTrainer, context: JobContext) -> Path:
    """Write the trained weights as the job's output "model". Collective."""
    folder = context.folder / "model"
    trainer.checkpointer.save_hugging_face(folder, context.input_folder("model"))
    return folder


def _communication() -> CommConfig:
    return dataclasses.replace(
        CommConfig(trace_buf_size=0),
        init_timeout_seconds=COLLECTIVE_TIMEOUT_SECONDS,
        train_timeout_seconds=COLLECTIVE_TIMEOUT_SECONDS,
    )
