"""The one batch form: packed rows with one float32 weight per token.

What it does: turns documents (token ids with what the model wrote) into rows of equal length, and rows into the slices that
ranks and micro-batches compute. What it does not do: decide weights; a stage says what each token weighs, and the weights sum
to 1 over the global batch, so that the loss is `sum(loss_weight * token_loss)` in every stage and on every layout.

Shapes: B rows, L positions of a row, K tokens of a support. Position t of a document predicts its token t + 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

IGNORE_INDEX = -100  # label of a position that is not trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One trajectory, ready to be packed. All per-position tensors have T - 1 rows for T tokens."""

    ids: tuple[int, ...]  # T tokens
    written: tuple[bool, ...]  # T flags: the model wrote this token
    weight_T: Tensor  # float32 [T-1]: weight of predicting token t + 1; zero where token t + 1 was not written by the model
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # [T-1] or [T-1, K] each, e.g. "support_ids"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """Rows of equal length. Padding is a document of its own, with weight 0."""

    tokens_BL: Tensor  # int64
    labels_BL: Tensor  # int64, IGNORE_INDEX where the weight is 0
    positions_BL: Tensor  # int64, restart at 0 in every document
    documents_BL: Tensor  # int64, 0, 1, 2, ... within a row
    loss_weight_BL: Tensor  # float32
    extras: Mapping[str, Tensor]  # [B, L] or [B, L, K]


def slice_rows(batch: PackedBatch, start: int, stop: int) -> PackedBatch:
    """Rows `start` to `stop` (exclusive), as views."""
    return PackedBatch(
        tokens_BL=batch.tokens_BL[start:stop],
        labels_BL=batch.labels_BL[start:stop],
        positions_BL=batch.positions_BL[start:stop],
        documents_BL=batch.documents_BL[start:stop],
        loss_weight_BL=batch.loss_weight_BL[start:stop],
        extras={name: extra[start:stop] for name, extra in batch.extras.items()},
    )
