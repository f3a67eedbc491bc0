"""Packing: nothing is lost, nothing is mixed up, and equal input gives equal output."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polymath.compiler.estimates.compute import document_flops
from polymath.runtime.data.batch import IGNORE_INDEX, Document, slice_rows
from polymath.runtime.data.packing import bins, by_cost_in_windows, pack
from polymath.specs.families import SIZES


def document(ids: list[int], written: list[bool], *, first: float = 0.0) -> Document:
    weight = torch.tensor([float(flag) for flag in written[1:]])
    extras = {"score": torch.arange(len(ids) - 1) + first, "support_ids": torch.tensor([[token, token + 1] for token in ids[1:]])}
    return Document(ids=tuple(ids), written=tuple(written), weight_T=weight, extras=extras)


@given(st.lists(st.integers(1, 64), max_size=60))
def test_every_item_is_in_one_bin_and_no_bin_overflows(lengths: list[int]) -> None:
    packed = bins(lengths, 64)
    assert sorted(index for items in packed for index in items) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in items) <= 64 for items in packed)
    # Best-fit decreasing needs at most 11/9 of the optimum and 6/9 of a bin more; the sum is a lower bound of the optimum only
    # where items are small, so what is checked is that no two bins could have been one.
    fills = sorted(sum(lengths[index] for index in items) for items in packed)
    assert len(fills) < 2 or fills[0] + fills[1] > 64


def test_order_of_items_does_not_change_the_number_of_bins() -> None:
    generator = random.Random(5)
    lengths = [generator.randint(1, 100) for _ in range(500)]
    shuffled = generator.sample(lengths, len(lengths))
    assert len(bins(lengths, 128)) == len(bins(shuffled, 128))
    assert sum(lengths) / (len(bins(lengths, 128)) * 128) > 0.98


def test_best_fit_takes_the_fullest_bin_that_has_room() -> None:
    assert bins([5, 8, 2, 4, 1], 10) == [[1, 2], [0, 3, 4]]


@pytest.mark.parametrize("lengths", [[9], [0], [-1]])
def test_an_item_that_fits_no_bin_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="item 0 has length"):
        bins(lengths, 8)


def test_documents_keep_their_tokens_labels_positions_and_extras() -> None:
    documents = [document([5, 6, 7, 8], [False, False, True, True]), document([9, 10, 11], [False, True, False], first=50)]
    batch = pack(documents, 8, rows=2, pad_id=3)
    assert batch.tokens_BL.tolist() == [[5, 6, 7, 9, 10, 3, 3, 3], [3] * 8]
    assert batch.labels_BL.tolist() == [[IGNORE_INDEX, 7, 8, 10] + [IGNORE_INDEX] * 4, [IGNORE_INDEX] * 8]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], list(range(8))]
    assert batch.documents_BL.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2], [0] * 8]
    assert batch.loss_weight_BL.tolist() == [[0, 1, 1, 1, 0, 0, 0, 0], [0] * 8]
    assert batch.extras["score"].tolist() == [[0, 1, 2, 50, 51, 0, 0, 0], [0] * 8]
    assert batch.extras["support_ids"].shape == (2, 8, 2)
    assert batch.extras["support_ids"][0, 3].tolist() == [10, 11]


def test_slices_put_together_are_the_batch() -> None:
    batch = pack([document(list(range(n)), [True] * n) for n in (3, 9, 5, 9, 7)], 8)
    parts = [slice_rows(batch, row, row + 1) for row in range(len(batch.tokens_BL))]
    for name in ("tokens_BL", "labels_BL", "positions_BL", "documents_BL", "loss_weight_BL"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([part.extras["score"] for part in parts]), batch.extras["score"])


def test_documents_that_do_not_fit_the_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="need 2 rows"):
        pack([document([1] * 6, [True] * 6), document([1] * 6, [True] * 6)], 8, rows=1)


def test_no_documents_make_padding_only() -> None:
    batch = pack([], 4, rows=1)
    assert batch.loss_weight_BL.tolist() == [[0.0] * 4]
    assert batch.extras == {}


def lengths_of_agent_trajectories(count: int) -> list[int]:
    """Log-normal with mean 43,700 and sigma 0.6, clipped to 512 and 131,072."""
    drawn = np.random.default_rng(0).lognormal(np.log(43_700) - 0.6**2 / 2, 0.6, count)
    return [int(length) for length in np.clip(drawn, 512, 131_072)]


def test_rows_of_long_trajectories_are_nearly_full() -> None:
    lengths = lengths_of_agent_trajectories(2_000)
    assert sum(lengths) / (len(bins(lengths, 131_072)) * 131_072) >= 0.994


@pytest.mark.parametrize("batch", [8, 16])
def test_ranks_of_a_step_have_about_the_same_work_in_a_shuffled_order(batch: int) -> None:
    lengths = lengths_of_agent_trajectories(2_000)
    flops = document_flops(SIZES["qwen3_5_moe"]["35b-a3b"])
    costs = [
        sum(flops["per_token"] * lengths[item] + flops["per_square"] * lengths[item] ** 2 for item in row)
        for row in bins(lengths, 131_072)
    ]
    generator = random.Random(7)
    generator.shuffle(costs)
    order = by_cost_in_windows(costs, batch, 32, generator)
    assert sorted(order) == list(range(len(costs)))
    steps = [[costs[row] for row in order[first : first + batch]] for first in range(0, len(costs) - batch + 1, batch)]
    per_rank = [[sum(step[rank * batch // 8 : (rank + 1) * batch // 8]) for rank in range(8)] for step in steps]
    balance = np.mean([np.mean(ranks) / max(ranks) for ranks in per_rank])
    unbalanced = np.mean([np.mean(costs[first : first + 8]) / max(costs[first : first + 8]) for first in range(0, 640, 8)])
    assert balance >= 0.98 > 0.8 > unbalanced
    means = [sum(step) for step in steps]
    assert sorted(means) != means  # steps are not in the order of their cost


def test_a_window_moves_rows_within_itself_only_and_leaves_the_rest_of_an_epoch_at_its_end() -> None:
    costs = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 9.0, 7.0, 8.0]
    order = by_cost_in_windows(costs, 2, 2, random.Random(0))
    assert sorted(map(sorted, ([costs[row] for row in order[:2]], [costs[row] for row in order[2:4]]))) == [[1, 2], [4, 5]]
    assert sorted(map(sorted, ([costs[row] for row in order[4:6]], [costs[row] for row in order[6:8]]))) == [[3, 6], [7, 9]]
    assert order[8:] == [8]
