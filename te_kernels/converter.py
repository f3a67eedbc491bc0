"""Installs expert layers through torchtitan's model-config converter; nothing of torchtitan is patched.

torchtitan's own `GroupedExperts` always computes in bfloat16. `Float32Experts` computes in the weights' own format, `ScaledExperts`
in FP8 by the plan's recipe. Both keep the stacked parameters `w1_EFD`, `w2_EDF`, `w3_EFD`, which sharding, checkpoints and the
Hugging Face adapters depend on.

The caller prepares torchtitan's import (a CPU needs it); this module only imports it.
"""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torchtitan.models.common.moe import GroupedExperts, RoutedExperts
from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher, LocalDispatchMetadata
from torchtitan.protocols.model import BaseModel, ModelConfigConverter

from .experts import Arithmetic, expert_layer
from .grouped import engine_arithmetic
from .history import AmaxHistory
from .permute import FusedRoute, pad_groups, permute_fused, unpermute_fused
from .recipe import Recipe, load
from .reference import ReferenceArithmetic

Backend = Literal["te", "reference"]


class Float32Experts(GroupedExperts):
    """SwiGLU experts without torchtitan's cast to bfloat16.

    Shapes: R routed tokens sorted by expert, E experts, D model width, F expert width.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        pass

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        """float32 [R, D]: each row through the expert it was routed to."""
        w1_EFD, w2_EDF, w3_EFD = (_local(weight) for weight in (self.w1_EFD, self.w2_EDF, self.w3_EFD))
        outputs = []
        for expert, x_rD in enumerate(torch.split(x_RD, num_tokens_per_expert_E.tolist())):
            h_rF = F.silu(x_rD @ w1_EFD[expert].T) * (x_rD @ w3_EFD[expert].T)
            outputs.append(h_rF @ w2_EDF[expert].T)
        return torch.cat(outputs)


class ScaledExperts(GroupedExperts):
    """SwiGLU experts whose products are computed in FP8, from weights in float32 or bfloat16.

    Shapes: as `Float32Experts`; the rows of an expert are a multiple of the recipe's alignment.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(GroupedExperts.Config):
        recipe: Recipe
        backend: Backend

    def __init__(self, config: Config):
        super().__init__(config)
        is_delayed = config.recipe.name == "DelayedScaling"
        self.history = AmaxHistory(recipe=config.recipe, experts=config.num_experts) if is_delayed else None
        self.arithmetic: Arithmetic = (
            engine_arithmetic(config.recipe, self.history)
            if config.backend == "te"
            else ReferenceArithmetic(config.recipe, self.history)
        )

    def forward(self, x_RD: Tensor, num_tokens_per_expert_E: Tensor) -> Tensor:
        """[R, D] in the format of the input: each row through the expert it was routed to."""
        if self.history is not None:
            self.history.to(x_RD.device)
            self.history.first_expert = _first_expert(self.w1_EFD)
            self.history.observes = torch.is_grad_enabled()
        weights = (_local(weight) for weight in (self.w1_EFD, self.w2_EDF, self.w3_EFD))
        return expert_layer(x_RD, *weights, num_tokens_per_expert_E.tolist(), self.arithmetic)


@dataclass(frozen=True, kw_only=True)
class PaddedDispatchMetadata(LocalDispatchMetadata):
    """How to take the padding out again, where no rank exchanges tokens."""

    position_R: Tensor


class PaddedTokenDispatcher(AllToAllTokenDispatcher):
    """Gives every expert a multiple of `multiple` rows, with and without expert parallelism; `combine` drops the padding again."""

    @dataclass(kw_only=True, slots=True)
    class Config(AllToAllTokenDispatcher.Config):
        multiple: int
        fused_by: Recipe | None = None  # without expert parallelism, Transformer Engine sorts and pads in one pass

    def __init__(self, config: Config):
        super().__init__(config)
        self.multiple = config.multiple
        self.engine = load(config.fused_by) if config.fused_by is not None else None

    def dispatch(
        self, x_TD: Tensor, topk_scores_TK: Tensor, topk_expert_ids_TK: Tensor, num_local_tokens_per_expert_E: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """As torchtitan's, with padding."""
        if self.ep_mesh is None and self.engine is not None:
            routed = (x_TD, topk_scores_TK, topk_expert_ids_TK, num_local_tokens_per_expert_E)
            return permute_fused(self.engine, *routed, self.multiple)
        x_RD, rows_E, metadata = super().dispatch(x_TD, topk_scores_TK, topk_expert_ids_TK, num_local_tokens_per_expert_E)
        if self.ep_mesh is None:
            x_RD, rows_E, position_R = pad_groups(x_RD, rows_E, self.multiple)
            metadata = PaddedDispatchMetadata(
                token_indices_experts_sorted_N=metadata.token_indices_experts_sorted_N,
                topk_scores_experts_sorted_N=metadata.topk_scores_experts_sorted_N,
                position_R=position_R,
            )
        return x_RD, rows_E, metadata

    def combine(self, routed_output_RD: Tensor, metadata: Any, x_TD: Tensor) -> Tensor:
        """As torchtitan's, without the padding."""
        if isinstance(metadata, FusedRoute):
            assert self.engine is not None
            return unpermute_fused(self.engine, routed_output_RD, metadata)
        if isinstance(metadata, PaddedDispatchMetadata):
            routed_output_RD = routed_output_RD[metadata.position_R]
        return super().combine(routed_output_RD, metadata, x_TD)

    def _permute(self, routed_input_RD: Tensor, num_global_tokens_per_local_expert_E: Tensor) -> tuple[Any, ...]:
        """torchtitan's seam after the exchange of tokens: from the order of ranks to that of experts."""
        shape, x_RD, permuted_indices, rows_E = super()._permute(routed_input_RD, num_global_tokens_per_local_expert_E)
        padded_PD, padded_E, position_R = pad_groups(x_RD, rows_E, self.multiple)
        return shape, padded_PD, (permuted_indices, position_R), padded_E

    def _unpermute(self, routed_output_RD: Tensor, input_shape: Any, permuted_indices: tuple[Tensor, Tensor]) -> Tensor:
        order_R, position_R = permuted_indices
        return super()._unpermute(routed_output_RD[position_R], input_shape, order_R)


class ExpertsConverter(ModelConfigConverter):
    """Swaps the experts of every layer for those of the plan's format."""

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        format: str
        backend: Backend | None = None  # of a scaled format
        recipe: Recipe | None = None  # of a scaled format
        except_layers: Collection[int] = ()  # whose experts stay in bfloat16

    def __init__(self, config: Config):
        self.config = config

    def convert(self, model_config: BaseModel.Config) -> BaseModel.Config:
        """Return the config with its experts swapped; torchtitan's own are bfloat16 already."""
        config = self.config
        if config.format == "float32":
            for _, experts, parent, attribute in list(model_config.traverse(GroupedExperts.Config)):
                setattr(parent, attribute, Float32Experts.Config(**_fields(experts)))
        elif config.recipe is not None:
            for name, routed, _, _ in list(model_config.traverse(RoutedExperts.Config)):
                if _layer_number(name) not in config.except_layers:
                    _scale(routed, config.recipe, config.backend)
        return model_config


def scaled_experts(model: torch.nn.Module) -> Iterator[tuple[str, ScaledExperts]]:
    """The expert layers of a built model that compute in FP8, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ScaledExperts))


def _scale(routed: RoutedExperts.Config, recipe: Recipe, backend: Backend) -> None:
    dispatcher = routed.token_dispatcher
    assert type(dispatcher) is AllToAllTokenDispatcher.Config, f"{type(dispatcher).__qualname__} would be lost"
    routed.inner_experts = ScaledExperts.Config(**_fields(routed.inner_experts), recipe=recipe, backend=backend)
    routed.token_dispatcher = PaddedTokenDispatcher.Config(
        **_fields(dispatcher), multiple=recipe.alignment, fused_by=recipe if backend == "te" else None
    )


def _layer_number(name: str) -> int:
    """The number in a name such as `layers.3.moe.routed_experts`."""
    _, number, *_ = name.split(".")
    return int(number)


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _first_expert(weight: Tensor) -> int:
    """The number, among the experts of all ranks, of the first expert that this rank computes."""
    if not isinstance(weight, DTensor):
        return 0
    coordinate = weight.device_mesh.get_coordinate()
    assert coordinate is not None
    part = 0
    for axis, placement in enumerate(weight.placements):
        if placement == Shard(0):
            part = part * weight.device_mesh.size(axis) + coordinate[axis]
    return part * weight.to_local().shape[0]


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
