"""A support holds the most likely tokens that may be written, or is not given."""

import torch
from polymath.runtime.engines.supports import invalid_mask, keep_valid


def test_invalid_ids_are_dropped_and_the_order_is_kept() -> None:
    invalid_V = invalid_mask(10, frozenset({0, 3, 12}), num_tokens=9)
    assert invalid_V.nonzero().flatten().tolist() == [0, 3, 9]
    ids_PJ = torch.tensor([[3, 5, 0, 7, 1], [6, 2, 8, 3, 9]])
    logprobs_PJ = torch.tensor([[-0.1, -0.2, -0.3, -0.4, -0.5], [-0.1, -0.2, -0.3, -0.4, -0.5]])
    kept = keep_valid(ids_PJ, logprobs_PJ, invalid_V, 3)
    assert kept is not None
    assert kept[0].tolist() == [[5, 7, 1], [6, 2, 8]]
    assert torch.equal(kept[1], torch.tensor([[-0.2, -0.4, -0.5], [-0.1, -0.2, -0.3]]))


def test_a_position_with_too_few_valid_tokens_gives_nothing() -> None:
    invalid_V = invalid_mask(10, frozenset({0, 3}), num_tokens=9)
    ids_PJ, logprobs_PJ = torch.tensor([[3, 0, 7, 1], [6, 2, 8, 4]]), torch.zeros(2, 4)
    assert keep_valid(ids_PJ, logprobs_PJ, invalid_V, 3) is None
    assert keep_valid(ids_PJ[1:], logprobs_PJ[1:], invalid_V, 5) is None
