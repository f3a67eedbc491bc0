"""From a Hugging Face folder to a torchtitan model spec, and from torchtitan's weights to transformers' names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models.common.moe import RoutedExperts
from torchtitan.protocols.model_spec import ModelSpec

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import ExpertPrecision
from ...te_kernels.converter import ExpertsConverter, scaled_experts
from ...te_kernels.history import AmaxHistory
from ...te_kernels.recipe import Recipe, TransformerEngineMissing, load
from ..engines.weights import Weights
from . import bootstrap
from .attention import document_layout
from .head import HeadConverter
from .models.family import Family

MODEL_TYPES = ("qwen3_moe", "qwen3_5_moe_text")  # of a config.json; the import job makes the second of a `qwen3_5_moe`


def family_of(model_type: str) -> Family:
    """How a family is trained. Its module is imported when it is needed: Qwen3.5 wants kernels that Qwen3 does without."""
    match model_type:
        case "qwen3_moe":
            from .models.qwen3_moe import FAMILY
        case "qwen3_5_moe_text":
            from .models.qwen3_5.family import FAMILY
        case _:
            raise UserError(
                f"a model of type {model_type!r} cannot be trained; {' and '.join(MODEL_TYPES)} can",
                exit_code=ExitCode.SPEC,
                fix="name a checkpoint of one of these families",
            )
    return FAMILY


def model_spec(model_folder: Path, *, experts: ExpertPrecision, recipe: Mapping[str, Any] | None = None) -> ModelSpec:
    """The torchtitan model of a Hugging Face folder, to be sharded by torchtitan and filled from the folder's safetensors.

    Args:
        recipe: of a scaled format of experts, as the plan writes it: `name` and `arguments`.

    Raises:
        UserError: exit code 5 where Transformer Engine is wanted and cannot compute the recipe here.
    """
    config = json.loads((model_folder / "config.json").read_text())
    family = family_of(config["model_type"])
    model = family.model_config(config)
    for converter in (_experts_converter(experts, recipe), HeadConverter.Config()):
        model = converter.build().convert(model)

    def parallelize(model: torch.nn.Module, **kwargs: Any) -> torch.nn.Module:
        """torchtitan's own. gloo has no pre-multiplied sum; the divide factor is 1, so a plain sum is the same."""
        model = family.parallelize(model, **kwargs)
        for module in model.modules():
            if isinstance(module, RoutedExperts):
                module.register_forward_pre_hook(_wait_for_inputs)
            if bootstrap.ON_CPU and isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
        return model

    return ModelSpec(
        name=config["model_type"],
        flavor=model_folder.name,
        model=model,
        parallelize_fn=parallelize,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=family.state_dict_adapter,
    )


def _experts_converter(experts: ExpertPrecision, recipe: Mapping[str, Any] | None) -> ExpertsConverter.Config:
    """Transformer Engine is looked for here, before anything is built."""
    scaled = Recipe(**recipe) if recipe is not None else None
    if scaled is not None and experts.backend == "te":
        try:
            load(scaled)
        except TransformerEngineMissing as error:
            why, _, fix = str(error).partition("\n")
            raise UserError(why, exit_code=ExitCode.UNFIT, fix=fix.strip()) from error
    return ExpertsConverter.Config(
        format=experts.format, backend=experts.backend, recipe=scaled, except_layers=experts.except_layers
    )


def amax_histories(model: torch.nn.Module) -> dict[str, AmaxHistory]:
    """The state of delayed scaling, by expert layer; empty where another format is trained."""
    return {name: layer.history for name, layer in scaled_experts(model) if layer.history is not None}


def _wait_for_inputs(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    """Let a gathered sequence arrive before torch's `local_map` takes it: torch 2.13 waits there outside of autograd, and the
    gradient through the experts would be lost. It is still on its way there if a micro-batch has one row; more are copied first."""
    for one in inputs:
        if isinstance(one, DTensor) and isinstance(one._local_tensor, AsyncCollectiveTensor):
            one._local_tensor = one._local_tensor.wait()


def document_inputs(spec: ModelSpec, documents_BL: Tensor) -> dict[str, Any]:
    """What a forward over packed rows takes beside tokens and positions.

    Args:
        documents_BL: int64; a document is a run of equal numbers in one row.
    """
    family = family_of(spec.name)
    return {"attention_masks": family.masks(document_layout(documents_BL)), **family.inputs}


def transformers_weights(model: torch.nn.Module, spec: ModelSpec) -> Weights:
    """A model's weights under the names of the `state_dict()` of transformers' model."""
    family = family_of(spec.name)
    state = model.state_dict(keep_vars=True)
    first_name = {id(tensor): name for name, tensor in reversed(state.items())}  # tied weights are one parameter
    units: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if first_name[id(tensor)] == name:
            units.setdefault(family.joined.sub("", name), {})[name] = tensor
    return Weights(list(units.values()), lambda unit: family.transformers_weights(unit, spec.model))
