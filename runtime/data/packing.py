"""Documents into rows of one length.

What it does: best-fit decreasing, as in `bins`, an order of rows by cost, and the tensors of the packed rows. What it does not
do: cut documents (a document longer than a row is an error here) or weigh tokens. Packing depends on nothing but the documents and
their order.

Shapes: B rows, L positions of a row, K tokens of a support. A document of T tokens takes T - 1 positions: tokens 0 to T - 2 are
inputs and tokens 1 to T - 1 their labels.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import IGNORE_INDEX, Document, PackedBatch


def bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into as few bins as best-fit decreasing finds; O(n log n) comparisons.

    Args:
        lengths: one per item.
        capacity: of a bin.

    Returns:
        Indices of items by bin. Ties go to the earlier item and the earlier bin, so that equal input gives equal output.

    Raises:
        ValueError: an item is longer than a bin, or shorter than 1.
    """
    packed: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (room left, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):  # sorted() is stable
        length = lengths[item]
        if not 0 < length <= capacity:
            raise ValueError(f"item {item} has length {length}; a row holds 1 to {capacity}")
        best = bisect_left(open_bins, (length, -1))
        if best == len(open_bins):
            packed.append([])
            room, number = capacity, len(packed) - 1
        else:
            room, number = open_bins.pop(best)
        packed[number].append(item)
        insort(open_bins, (room - length, number))
    return packed


def by_cost_in_windows(costs: Sequence[float], batch: int, window: int, generator: random.Random) -> list[int]:
    """An order in which the rows of a step cost about the same, while its steps stay shuffled.

    Within every window the rows are sorted by cost and cut into steps, whose order is shuffled again. A rank that holds dear rows
    keeps all others waiting at the end of the step; so ranks should hold rows of like cost, and need not hold them for ever.

    Args:
        costs: of the rows, which are in random order.
        batch: rows of a step.
        window: steps of a window.
        generator: shuffles the steps of a window.

    Returns:
        Indices into `costs`. Rows left over at the end of an epoch stay at its end, where the next epoch fills up their step.
    """
    whole = len(costs) - len(costs) % batch
    order: list[int] = []
    for start in range(0, whole, batch * window):
        inside = sorted(range(start, min(start + batch * window, whole)), key=lambda row: costs[row])
        steps = [_cheapest_beside_dearest(inside[first : first + batch]) for first in range(0, len(inside), batch)]
        generator.shuffle(steps)
        order.extend(row for step in steps for row in step)
    return [*order, *range(whole, len(costs))]


def _cheapest_beside_dearest(ascending: list[int]) -> list[int]:
    """First, last, second, last but one, ...: ranks that take several neighbours get sums that hardly differ."""
    folded = [row for pair in zip(ascending, reversed(ascending), strict=True) for row in pair]
    return folded[: len(ascending)]


def pack(documents: Sequence[Document], sequence_tokens: int, rows: int | None = None, pad_id: int = 0) -> PackedBatch:
    """Pack documents into rows.

    Args:
        documents: each of 2 to `sequence_tokens` + 1 tokens; all with the same extras.
        sequence_tokens: L.
        rows: B; rows without documents are padding. None takes as many as are needed.
        pad_id: the token of padding.

    Raises:
        ValueError: a document does not fit a row, or the documents do not fit `rows`.
    """
    packed = bins([len(document.ids) - 1 for document in documents], sequence_tokens)
    if rows is not None:
        if len(packed) > rows:
            raise ValueError(f"the documents need {len(packed)} rows of {sequence_tokens} tokens; there are {rows}")
        packed += [[] for _ in range(rows - len(packed))]
    return pack_rows([[documents[index] for index in row] for row in packed], sequence_tokens, pad_id)


def pack_rows(rows: Sequence[Sequence[Document]], sequence_tokens: int, pad_id: int = 0) -> PackedBatch:
    """The batch of documents that are already assigned to rows."""
    shape = (len(rows), sequence_tokens)
    tokens_BL = torch.full(shape, pad_id, dtype=torch.int64)
    labels_BL = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    positions_BL = torch.zeros(shape, dtype=torch.int64)
    documents_BL = torch.zeros(shape, dtype=torch.int64)
    loss_weight_BL = torch.zeros(shape, dtype=torch.float32)
    extras = _empty_extras(rows, shape)
    for b, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            stop = start + len(document.ids) - 1
            ids_T = torch.tensor(document.ids, dtype=torch.int64)
            tokens_BL[b, start:stop] = ids_T[:-1]
            labels_BL[b, start:stop] = torch.where(document.weight_T != 0, ids_T[1:], IGNORE_INDEX)
            positions_BL[b, start:stop] = torch.arange(stop - start)
            documents_BL[b, start:stop] = number
            loss_weight_BL[b, start:stop] = document.weight_T
            for name, extra in extras.items():
                extra[b, start:stop] = document.extras[name]
            start = stop
        positions_BL[b, start:] = torch.arange(sequence_tokens - start)
        documents_BL[b, start:] = len(row)
    return PackedBatch(
        tokens_BL=tokens_BL,
        labels_BL=labels_BL,
        positions_BL=positions_BL,
        documents_BL=documents_BL,
        loss_weight_BL=loss_weight_BL,
        extras=extras,
    )


def _empty_extras(rows: Sequence[Sequence[Document]], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Zeros for the extras that the documents bring; the first document says which and of what form."""
    first = next((document for row in rows for document in row), None)
    if first is None:
        return {}
    return {name: extra.new_zeros(*shape, *extra.shape[1:]) for name, extra in first.extras.items()}
