"""What is watched is what all logits say, without ever holding all logits."""

import pytest
import torch
from polymath.runtime.losses import subset
from polymath.runtime.losses.watched import num_shared, watch
from torch import Tensor

TOKENS, WIDTH, VOCABULARY, K = 11, 16, 53, 6


def _inputs(k: int = K) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_MH = torch.randn(TOKENS, WIDTH, generator=generator)
    head_VH = torch.randn(VOCABULARY, WIDTH, generator=generator)
    support_MK = torch.randn(TOKENS, VOCABULARY, generator=generator).topk(k, dim=-1).indices
    return hidden_MH, head_VH, support_MK, torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


@pytest.fixture(params=[subset.CHUNK_BYTES, 1, 300], ids=["in one piece", "one by one", "some at a time"])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("k", [2, K, VOCABULARY])
def test_every_number_is_that_of_all_logits(k: int) -> None:
    hidden_MH, head_VH, support_MK, next_M = _inputs(k)
    found = watch(hidden_MH.requires_grad_(), head_VH, support_MK, next_M)
    logprobs_MV = (hidden_MH @ head_VH.T).log_softmax(-1).detach()
    own = logprobs_MV.topk(k, dim=-1).indices.tolist()
    overlap_M = torch.tensor([len({*a} & {*b}) / k for a, b in zip(own, support_MK.tolist(), strict=True)])
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.coverage_M, logprobs_MV.gather(1, support_MK).exp().sum(-1), **close)
    torch.testing.assert_close(found.overlap_M, overlap_M, **close)
    torch.testing.assert_close(found.entropy_M, -(logprobs_MV.exp() * logprobs_MV).sum(-1), **close)
    torch.testing.assert_close(found.logprob_M, logprobs_MV.gather(1, next_M[:, None]).squeeze(1), **close)
    assert not any(one.requires_grad for one in (found.coverage_M, found.overlap_M, found.entropy_M, found.logprob_M))


def test_a_case_by_hand() -> None:
    """Logits log 4, log 3, log 2, log 1: probabilities 0.4, 0.3, 0.2, 0.1. The teacher names 0 and 2, the student likes 0 and 1."""
    head_VH = torch.tensor([4.0, 3.0, 2.0, 1.0]).log().unsqueeze(1)
    found = watch(torch.ones(1, 1), head_VH, torch.tensor([[0, 2]]), torch.tensor([3]))
    assert found.coverage_M.item() == pytest.approx(0.6)
    assert found.overlap_M.item() == 0.5
    assert found.entropy_M.item() == pytest.approx(1.27985, abs=1e-4)
    assert found.logprob_M.item() == pytest.approx(-2.302585, abs=1e-5)


def test_ids_that_no_support_holds_are_not_among_the_students_own() -> None:
    head_VH = torch.tensor([4.0, 3.0, 2.0, 1.0]).log().unsqueeze(1)
    found = watch(torch.ones(1, 1), head_VH, torch.tensor([[0, 2]]), torch.tensor([3]), invalid_ids=(1, 99))
    assert found.overlap_M.item() == 1.0
    assert found.coverage_M.item() == pytest.approx(0.6)  # its mass on them still counts as lost


def test_no_tokens_are_watched_without_complaint() -> None:
    hidden_MH, head_VH, support_MK, next_M = _inputs()
    assert watch(hidden_MH[:0], head_VH, support_MK[:0], next_M[:0]).coverage_M.shape == (0,)


def test_shared_ids_are_counted_whatever_their_order() -> None:
    assert num_shared(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 9, 1], [7, 8, 9]])).tolist() == [2, 0]
