"""Which experts the trainer's model sends its tokens to.

Shapes: B rows, L positions, C experts that a token visits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.models.common.moe import TokenChoiceTopKRouter


@contextmanager
def recorded_choices(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """A list that a forward pass within the block fills: int64 [B, L, C] of every layer with experts, in order."""
    found: list[Tensor] = []

    def record(module: torch.nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
        choices_BLC = output[1]
        found.append(choices_BLC.full_tensor() if isinstance(choices_BLC, DTensor) else choices_BLC)

    hooks = [module.register_forward_hook(record) for module in model.modules() if isinstance(module, TokenChoiceTopKRouter)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
