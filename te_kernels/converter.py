"""Installs expert layers through torchtitan's model-config converter; nothing of torchtitan is patched.

torchtitan's own `GroupedExperts` always computes in bfloat16. `Float32Experts` computes in the weights' own format and keeps the
stacked parameters `w1_EFD`, `w2_EDF`, `w3_EFD`, which sharding, checkpoints and the Hugging Face adapters depend on.

The caller prepares torchtitan's import (a CPU needs it); this module only imports it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.protocols.model import BaseModel, ModelConfigConverter


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


class ExpertsConverter(ModelConfigConverter):
    """Swaps the experts of every layer for those of the plan's format."""

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        format: Literal["float32", "bfloat16"]

    def __init__(self, config: Config):
        self.format = config.format

    def convert(self, model_config: BaseModel.Config) -> BaseModel.Config:
        """Return the config with its experts swapped; torchtitan's own are bfloat16 already."""
        if self.format == "float32":
            for _, experts, parent, attribute in list(model_config.traverse(GroupedExperts.Config)):
                fields = {field.name: getattr(experts, field.name) for field in dataclasses.fields(experts)}
                setattr(parent, attribute, Float32Experts.Config(**fields))
        return model_config


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
