"""Promises of the distillation loss (method.md, section 6.2)."""

import pytest
import torch
from polymath.runtime.losses import distill


def _logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def _support(teacher_NV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    top = teacher_NV.log_softmax(-1).topk(k, dim=-1)
    return top.indices, top.values


def test_a_support_of_one_token_gives_exactly_zero_loss_and_gradient() -> None:
    student_NV = _logits(5, 11).requires_grad_()
    terms = distill.token_loss(student_NV, *_support(_logits(5, 11, seed=1), 1))
    terms.loss_N.sum().backward()
    assert torch.equal(terms.loss_N, torch.zeros(5))
    assert student_NV.grad is not None and torch.equal(student_NV.grad, torch.zeros(5, 11))


def test_a_support_of_the_whole_vocabulary_is_the_full_reverse_kl() -> None:
    student_NV, teacher_NV = _logits(5, 11), _logits(5, 11, seed=1)
    terms = distill.token_loss(student_NV, *_support(teacher_NV, 11))
    log_p, log_q = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    assert torch.allclose(terms.loss_N, (log_p.exp() * (log_p - log_q)).sum(-1), atol=1e-6)
    assert torch.allclose(terms.coverage_N, torch.ones(5), atol=1e-6)


def test_the_gradient_is_p_times_log_ratio_less_kl_on_the_support_and_exactly_zero_outside() -> None:
    student_NV = _logits(7, 13).requires_grad_()
    ids_NK, logprobs_NK = _support(_logits(7, 13, seed=1), 4)
    terms = distill.token_loss(student_NV, ids_NK, logprobs_NK)
    terms.loss_N.sum().backward()
    assert student_NV.grad is not None

    log_p = student_NV.detach().gather(1, ids_NK).log_softmax(-1)
    log_q = logprobs_NK.log_softmax(-1)
    expected_NK = log_p.exp() * (log_p - log_q - terms.loss_N.detach()[:, None])
    assert torch.allclose(student_NV.grad.gather(1, ids_NK), expected_NK, atol=1e-6)
    assert torch.equal(student_NV.grad.scatter(1, ids_NK, 0.0), torch.zeros(7, 13))


def test_the_loss_is_differentiable_and_right_to_first_order() -> None:
    """The slope along a random direction, by central differences in the loss itself."""
    student_NV, direction_NV = _logits(3, 9).requires_grad_(), _logits(3, 9, seed=2)
    support = _support(_logits(3, 9, seed=1), 5)
    (gradient_NV,) = torch.autograd.grad(distill.token_loss(student_NV, *support).loss_N.sum(), student_NV)
    step = 1e-2
    above, below = (distill.token_loss(student_NV.detach() + sign * step * direction_NV, *support).loss_N.sum() for sign in (1, -1))
    assert (gradient_NV * direction_NV).sum().item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-2)


def test_offsets_of_either_side_change_nothing() -> None:
    student_NV = _logits(4, 9)
    ids_NK, logprobs_NK = _support(_logits(4, 9, seed=1), 5)
    plain = distill.token_loss(student_NV, ids_NK, logprobs_NK).loss_N
    assert torch.allclose(distill.token_loss(student_NV + 3.0, ids_NK, logprobs_NK - 2.0).loss_N, plain, atol=1e-5)


def test_a_student_equal_to_its_teacher_loses_nothing() -> None:
    logits_NV = _logits(4, 9)
    terms = distill.token_loss(logits_NV, *_support(logits_NV, 5))
    assert terms.loss_N.abs().max() < 1e-6


def test_coverage_is_the_students_mass_and_carries_no_gradient() -> None:
    student_NV = _logits(6, 10).requires_grad_()
    ids_NK, logprobs_NK = _support(_logits(6, 10, seed=1), 3)
    terms = distill.token_loss(student_NV, ids_NK, logprobs_NK)
    assert torch.allclose(terms.coverage_N, student_NV.softmax(-1).gather(1, ids_NK).sum(-1), atol=1e-6)
    assert not terms.coverage_N.requires_grad


def test_impossible_tokens_of_the_student_make_no_nan() -> None:
    student_NV = _logits(2, 6)
    student_NV[0, 2] = -torch.inf
    student_NV.requires_grad_()
    terms = distill.token_loss(student_NV, torch.tensor([[2, 3], [1, 0]]), torch.tensor([[-0.1, -2.0], [-0.5, -1.0]]))
    terms.loss_N.sum().backward()
    assert student_NV.grad is not None
    assert terms.loss_N.isfinite().all() and student_NV.grad.isfinite().all() and terms.coverage_N.isfinite().all()


def test_half_precision_logits_are_computed_in_float32() -> None:
    student_NV = _logits(3, 8).bfloat16()
    support = _support(_logits(3, 8, seed=1), 4)
    terms = distill.token_loss(student_NV, *support)
    assert terms.loss_N.dtype == torch.float32
    assert torch.equal(terms.loss_N, distill.token_loss(student_NV.float(), *support).loss_N)


def test_no_positions_give_an_empty_loss_that_still_reaches_the_logits() -> None:
    logits_NV = _logits(4, 8).requires_grad_()
    terms = distill.token_loss(logits_NV[:0], torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3))
    terms.loss_N.sum().backward()
    assert logits_NV.grad is not None and torch.equal(logits_NV.grad, torch.zeros(4, 8))
