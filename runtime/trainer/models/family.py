"""What the trainer must know about a model family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

from ..attention import DocumentLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family of models that torchtitan trains and transformers reads."""

    model_config: Callable[[Mapping[str, Any]], BaseModel.Config]
    """From a Hugging Face config.json; experts are swapped afterwards."""

    parallelize: Callable[..., torch.nn.Module]
    """torchtitan's own."""

    state_dict_adapter: type[BaseStateDictAdapter]
    """Between torchtitan's weights and the folder's safetensors."""

    masks: Callable[[DocumentLayout], Any]
    """What the model's forward takes as `attention_masks`: documents of a row never see each other."""

    inputs: Mapping[str, Any]
    """What else every forward takes."""

    transformers_weights: Callable[[Mapping[str, Tensor], BaseModel.Config], dict[str, Tensor]]
    """Full weights under the names of the `state_dict()` of transformers' model."""
