"""Keys and values of the rows that were generated last, for prompts that go on from them.

An episode's next prompt is what was read and written so far and a few tokens of the world's answer. With what is kept here only
those few are read. Rows of different lengths share one cache, so that a row has holes: columns that hold another row's tokens, and
that its attention mask leaves out. Positions count a row's own tokens alone.

Shapes: B rows, L columns of the cache, N of them new.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

KEPT_BYTES = 2**28  # of keys and values between two calls; more is forgotten, and read again


@dataclass(kw_only=True)
class KeptRows:
    """Rows as the cache holds them."""

    cache: DynamicCache
    ids_BL: Tensor
    own_BL: Tensor  # bool: the column is one of the row's own tokens
    known: dict[tuple[int, ...], int]  # the own tokens of each row, and where it is

    @classmethod
    def of_generation(
        cls, cache: DynamicCache, ids_BL: Tensor, own_BL: Tensor, sequences: Sequence[tuple[int, ...]]
    ) -> "KeptRows | None":
        """What to keep; None if it is too much, or if a layer's state cannot be gone on from with holes.

        Args:
            ids_BL: one column more than the cache: what was written last was not read yet.
            sequences: each row's own tokens, those of that last column included.
        """
        if any(type(layer) is not DynamicLayer for layer in cache.layers):  # recurrent, sliding: a hole would enter the state
            return None
        if sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) > KEPT_BYTES:
            return None
        unread = own_BL[:, -1].tolist()
        known = {sequence[: len(sequence) - last]: row for row, (sequence, last) in enumerate(zip(sequences, unread, strict=True))}
        return cls(cache=cache, ids_BL=ids_BL[:, :-1], own_BL=own_BL[:, :-1], known=known)

    def extended(self, prompts: Sequence[Sequence[int]], pad_id: int, columns: int) -> tuple[Tensor, Tensor] | None:
        """Arrange the rows as the prompts ask, and add the prompts' new tokens behind them.

        Args:
            columns: more than these would be more work than to read the prompts anew.

        Returns:
            Ids and own columns [B, L + N], the cache holding L; None if a prompt goes on from no row. A row may serve many prompts.
        """
        lengths = sorted({len(sequence) for sequence in self.known}, reverse=True)
        found: list[tuple[int, Sequence[int]]] = []
        for prompt in prompts:
            matches = ((self.known.get(tuple(prompt[:length])), length) for length in lengths if length < len(prompt))
            row, length = next(((row, length) for row, length in matches if row is not None), (None, 0))
            if row is None:
                return None
            found.append((row, prompt[length:]))
        most = max(len(new) for _, new in found)
        if self.ids_BL.shape[1] + most > columns:
            return None
        rows_B = torch.tensor([row for row, _ in found], device=self.ids_BL.device)
        new_BN = torch.tensor([[pad_id] * (most - len(new)) + list(new) for _, new in found], device=self.ids_BL.device)
        length_B1 = torch.tensor([[len(new)] for _, new in found], device=self.ids_BL.device)
        own_BN = torch.arange(most, device=self.ids_BL.device)[None] >= most - length_B1
        self.cache.batch_select_indices(rows_B)
        return torch.cat([self.ids_BL[rows_B], new_BN], dim=1), torch.cat([self.own_BL[rows_B], own_BN], dim=1)
