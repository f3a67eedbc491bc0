"""What the trainer must know about a model family."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

from ....specs.diagnostics import ExitCode, UserError
from ..attention import DocumentLayout

SUPPORTED: Mapping[str, Any] = {"hidden_act": "silu", "attention_bias": False, "rms_norm_eps": 1e-6}


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
    """Full weights under the names of the `state_dict()` of transformers' model; of all, or of a few that belong together."""

    joined: re.Pattern[str]
    """What tells the names of weights apart that become one weight of transformers' model; without it they are the same."""


def refuse_unsupported(config: Mapping[str, Any], **more: Any) -> None:
    """Refuse a config.json that says what torchtitan's layers do not do: the weights would load and mean something else.

    Args:
        more: values that a family supports beside `SUPPORTED`; a key that the config lacks is taken for supported.

    Raises:
        UserError: names the key and both values.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = {**config, "rope_type": rope.get("rope_type", "default")}
    for key, value in {**SUPPORTED, "rope_type": "default", **more}.items():
        if found.get(key, value) != value:
            raise UserError(
                f"a model with {key}: {found[key]!r} cannot be trained; {value!r} can",
                exit_code=ExitCode.SPEC,
                fix="name another checkpoint",
            )
