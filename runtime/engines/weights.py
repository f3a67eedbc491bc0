"""The weights that a trainer gives to an engine: a stream, of which no rank ever holds more than one unit."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Unit = Mapping[str, Tensor]
"""Tensors, perhaps sharded, that are converted together: one weight, or the parts of one that transformers joins."""


class Weights:
    """Full tensors under the names of transformers' `state_dict()`, tied ones once. Every pass gathers them anew."""

    def __init__(self, units: Sequence[Unit], convert: Callable[[Unit], Mapping[str, Tensor]] = dict) -> None:
        """Nothing is gathered yet.

        Args:
            units: in the same order on every rank; references to a model's own tensors.
            convert: a unit, gathered, to transformers' names and layouts.
        """
        self._units, self._convert = units, convert

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """One after the other; whoever keeps none holds one unit at a time. Collective: every rank goes to the end."""
        return self._pass(_gathered)

    def described(self) -> dict[str, Tensor]:
        """Their names, formats and shapes in the order of a pass, as tensors without content. Nothing is gathered."""
        return dict(self._pass(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")))

    def _pass(self, take: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
        for unit in self._units:
            yield from self._convert({name: take(tensor) for name, tensor in unit.items()}).items()


def _gathered(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
