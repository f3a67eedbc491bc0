"""Promises of the divergences and estimators beside the default: from hidden states as from logits, each as its formula says."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from polymath.runtime.losses import distill, divergences, subset, vocabulary
from torch import Tensor

TOKENS, WIDTH, VOCABULARY, K = 37, 12, 53, 6
DIVERGENCES = list(divergences.DIVERGENCES)
VALID = torch.tensor([one for one in range(VOCABULARY) if one % 9])


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Problem:
    """A student's hidden states and head, a teacher's distribution, and what both sides wrote."""

    def __init__(self, tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> None:
        self.hidden_NH = _random(tokens, WIDTH, seed=0, dtype=dtype).div(2).requires_grad_()
        self.head_VH = _random(VOCABULARY, WIDTH, seed=1, dtype=dtype).requires_grad_()
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.teacher_NV = _random(tokens, VOCABULARY, seed=2, dtype=exact).mul(2).log_softmax(-1)
        self.top = self.teacher_NV.topk(K, dim=-1)
        self.written_N = torch.arange(tokens) * 7 % VOCABULARY
        self.teacher_N = self.teacher_NV.gather(1, self.written_N[:, None]).squeeze(1)
        self.weight_N = torch.rand(tokens, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            own_N = self.logits().log_softmax(-1).gather(1, self.written_N[:, None]).squeeze(1)
            self.rollout_N = own_N + _random(tokens, seed=4, dtype=exact)  # about half of them fall outside of the bounds

    def logits(self) -> Tensor:
        return self.hidden_NH @ self.head_VH.T

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.hidden_NH, self.head_VH

    def gradients(self, loss_N: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((loss_N * self.weight_N.to(loss_N.dtype)).sum(), self.inputs)


def _support(p: Problem, divergence: Any) -> tuple[Tensor, Tensor]:
    return (
        subset.token_loss(*p.inputs, p.top.indices, p.top.values, divergence),
        distill.token_loss(p.logits(), p.top.indices, p.top.values, divergence=divergence).loss_N,
    )


def _bucket(p: Problem, divergence: Any) -> tuple[Tensor, Tensor]:
    return (
        vocabulary.bucket_loss(*p.inputs, p.top.indices, p.top.values, divergence),
        distill.token_loss(p.logits(), p.top.indices, p.top.values, divergence=divergence, tail="bucket").loss_N,
    )


def _full(p: Problem, divergence: Any) -> tuple[Tensor, Tensor]:
    logprobs_NU = p.teacher_NV[:, VALID]
    ids_NU = VALID.expand(len(p.hidden_NH), -1)
    return (
        vocabulary.full_loss(*p.inputs, VALID, logprobs_NU, divergence),
        distill.token_loss(p.logits(), ids_NU, logprobs_NU, divergence=divergence).loss_N,
    )


EXACT = {"support": _support, "bucket": _bucket, "full": _full}
exact_losses = pytest.mark.parametrize("loss", EXACT.values(), ids=EXACT)
divergence_names = pytest.mark.parametrize("divergence", DIVERGENCES)


@pytest.fixture(params=[vocabulary.CHUNK_BYTES, 1, 5 * VOCABULARY * 4], ids=["in one piece", "one by one", "some at a time"])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (subset, vocabulary):
        monkeypatch.setattr(module, "CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("chunk_bytes")
@exact_losses
@divergence_names
def test_value_and_gradients_are_those_of_the_logits(loss: Callable[..., Any], divergence: str) -> None:
    problem = Problem()
    found, expected = loss(problem, divergence)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for gradient, reference in zip(problem.gradients(found), problem.gradients(expected), strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)


@exact_losses
@divergence_names
def test_value_and_gradients_agree_with_finite_differences_in_double_precision(loss: Callable[..., Any], divergence: str) -> None:
    problem = Problem(tokens=4, dtype=torch.float64)

    def of(hidden_NH: Tensor, head_VH: Tensor) -> Tensor:
        problem.hidden_NH, problem.head_VH = hidden_NH, head_VH
        return loss(problem, divergence)[0]

    assert torch.autograd.gradcheck(of, problem.inputs)


@exact_losses
@divergence_names
def test_bfloat16_inputs_are_computed_in_float32(loss: Callable[..., Any], divergence: str) -> None:
    problem, exact = Problem(dtype=torch.bfloat16), Problem()
    exact.hidden_NH, exact.head_VH = (one.detach().float().requires_grad_() for one in problem.inputs)
    found, expected = loss(problem, divergence)[0], loss(exact, divergence)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for gradient, reference in zip(problem.gradients(found), exact.gradients(expected), strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.float() - reference).abs().max() < 2**-7 * reference.abs().max()


@exact_losses
@divergence_names
def test_no_tokens_give_an_empty_loss_that_still_reaches_hidden_states_and_head(loss: Callable[..., Any], divergence: str) -> None:
    problem = Problem(tokens=0)
    found, _ = loss(problem, divergence)
    assert found.shape == (0,)
    for gradient, like in zip(problem.gradients(found), problem.inputs, strict=True):
        assert torch.equal(gradient, torch.zeros_like(like))


@exact_losses
@divergence_names
def test_the_order_of_tokens_changes_nothing_but_the_order_of_losses(loss: Callable[..., Any], divergence: str) -> None:
    problem, turned = Problem(), Problem()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(9))
    turned.hidden_NH = problem.hidden_NH.detach()[order].requires_grad_()
    turned.teacher_NV, turned.weight_N = problem.teacher_NV[order], problem.weight_N[order]
    turned.top = turned.teacher_NV.topk(K, dim=-1)
    found, expected = loss(turned, divergence)[0], loss(problem, divergence)[0]
    torch.testing.assert_close(found, expected[order], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(turned.gradients(found)[1], problem.gradients(expected)[1], atol=1e-5, rtol=1e-5)


@exact_losses
@divergence_names
def test_a_student_equal_to_its_teacher_has_neither_loss_nor_gradient(loss: Callable[..., Any], divergence: str) -> None:
    problem = Problem()
    problem.teacher_NV = problem.logits().detach().log_softmax(-1)
    problem.top = problem.teacher_NV.topk(K, dim=-1)
    found, _ = loss(problem, divergence)
    assert found.abs().max() < 1e-5
    assert all(gradient.abs().max() < 1e-4 for gradient in problem.gradients(found))


@divergence_names
def test_no_head_row_outside_the_supports_is_read_or_moved_without_a_bucket(divergence: Any) -> None:
    problem, poisoned = Problem(tokens=4), Problem(tokens=4)
    outside_V = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, problem.top.indices.reshape(-1), False)
    with torch.no_grad():
        poisoned.head_VH[outside_V] = torch.nan
    clean, found = (subset.token_loss(*one.inputs, one.top.indices, one.top.values, divergence) for one in (problem, poisoned))
    assert torch.equal(found, clean)
    for gradient, reference in zip(poisoned.gradients(found), problem.gradients(clean), strict=True):
        assert torch.equal(gradient, reference)
    assert (
        outside_V.any()
        and not poisoned.gradients(subset.token_loss(*poisoned.inputs, poisoned.top.indices, poisoned.top.values, divergence))[1][
            outside_V
        ].any()
    )


@divergence_names
def test_rows_that_stand_for_no_valid_token_are_in_no_full_vocabulary(divergence: Any) -> None:
    problem, poisoned = Problem(), Problem()
    invalid_V = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, VALID, False)
    with torch.no_grad():
        poisoned.head_VH[invalid_V] = torch.nan
    clean, found = (vocabulary.full_loss(*one.inputs, VALID, one.teacher_NV[:, VALID], divergence) for one in (problem, poisoned))
    assert torch.equal(found, clean)
    gradient_NH, gradient_VH = poisoned.gradients(found)
    assert gradient_NH.isfinite().all() and not gradient_VH[invalid_V].any() and gradient_VH[VALID].any(dim=-1).all()


@divergence_names
def test_the_full_vocabulary_is_a_support_of_all_valid_tokens(divergence: Any) -> None:
    problem = Problem()
    ids_NU = VALID.expand(TOKENS, -1)
    found = vocabulary.full_loss(*problem.inputs, VALID, problem.teacher_NV[:, VALID], divergence)
    expected = subset.token_loss(*problem.inputs, ids_NU, problem.teacher_NV[:, VALID], divergence)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_bucket_is_the_support_by_its_mass_and_the_divergence_of_the_masses() -> None:
    """KL on K + 1 bins = rho KL_K + KL_Bernoulli(rho || rho_q), and the full KL adds (1 - rho) KL_tail (method, section 6.2)."""
    problem = Problem(dtype=torch.float64)
    student_NV = problem.logits().log_softmax(-1)
    inside_NV = torch.zeros_like(student_NV, dtype=torch.bool).scatter(1, problem.top.indices, True)
    rho, rho_q = (log.exp().where(inside_NV, 0).sum(-1) for log in (student_NV, problem.teacher_NV))
    bernoulli = rho * (rho / rho_q).log() + (1 - rho) * ((1 - rho) / (1 - rho_q)).log()
    bucket = vocabulary.bucket_loss(*problem.inputs, problem.top.indices, problem.top.values)
    on_support = subset.token_loss(*problem.inputs, problem.top.indices, problem.top.values)
    torch.testing.assert_close(bucket, rho * on_support + bernoulli)

    outside = [log.masked_fill(inside_NV, -torch.inf).log_softmax(-1) for log in (student_NV, problem.teacher_NV)]
    tails = [log.masked_fill(inside_NV, 0) for log in outside]
    tail = (outside[0].exp() * (tails[0] - tails[1])).sum(-1)
    everything = torch.arange(VOCABULARY)
    full = vocabulary.full_loss(*problem.inputs, everything, problem.teacher_NV)
    torch.testing.assert_close(bucket + (1 - rho) * tail, full)


def test_a_bucket_pushes_mass_back_into_the_support_where_the_default_does_not() -> None:
    logits_1V = torch.tensor([[0.0, 0.0, 3.0, 3.0]], requires_grad=True)
    ids, logprobs = torch.tensor([[0, 1]]), torch.tensor([[math.log(0.49)] * 2])
    slopes = [
        torch.autograd.grad(distill.token_loss(logits_1V, ids, logprobs, tail=tail).loss_N.sum(), logits_1V)[0]
        for tail in ("none", "bucket")
    ]
    assert not slopes[0].any()
    assert (slopes[1][0, :2] < 0).all() and (slopes[1][0, 2:] > 0).all()


@divergence_names
def test_a_teacher_without_any_mass_off_the_support_has_a_finite_bucket(divergence: Any) -> None:
    problem = Problem()
    certain_NK = torch.full((TOKENS, K), -40.0).index_fill(1, torch.tensor([0]), 0.0)
    found = vocabulary.bucket_loss(*problem.inputs, problem.top.indices, certain_NK, divergence)
    assert found.isfinite().all() and all(gradient.isfinite().all() for gradient in problem.gradients(found))


@divergence_names
def test_a_support_of_one_token_gives_exactly_zero_loss_and_gradient(divergence: Any) -> None:
    problem = Problem()
    found = subset.token_loss(*problem.inputs, problem.top.indices[:, :1], problem.top.values[:, :1], divergence)
    assert torch.equal(found, torch.zeros(TOKENS))
    assert not any(gradient.any() for gradient in problem.gradients(found))


@divergence_names
def test_an_offset_of_either_side_changes_nothing(divergence: Any) -> None:
    problem = Problem()
    compute = divergences.DIVERGENCES[divergence]
    logits_NK = problem.logits().detach().gather(1, problem.top.indices)
    plain, shifted = compute(logits_NK, problem.top.values), compute(logits_NK + 3, problem.top.values - 5)
    for one, other in zip(plain, shifted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@divergence_names
def test_tokens_that_one_side_rules_out_make_no_nan(divergence: Any) -> None:
    logits_NK = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, -torch.inf, 1.0]])
    teacher_NK = torch.tensor([[-1.0, -torch.inf, -0.5], [-1.0, -2.0, -0.5]])
    loss_N, slope_NK = divergences.DIVERGENCES[divergence](logits_NK, teacher_NK)
    assert not loss_N.isnan().any() and slope_NK.isfinite().all() and loss_N[0].isfinite()


def test_jensen_shannon_is_symmetric_and_at_most_log_two() -> None:
    left, right = _random(50, K, seed=5) * 20, _random(50, K, seed=6) * 20
    loss_N, _ = divergences.jsd(left, right)
    torch.testing.assert_close(loss_N, divergences.jsd(right, left)[0], atol=1e-6, rtol=1e-5)
    assert loss_N.max() <= math.log(2) + 1e-6 and loss_N.max() > 0.9 * math.log(2)


def _sampled(p: Problem, divergence: str) -> tuple[Tensor, Tensor]:
    expected = distill.sampled_loss(p.logits(), p.written_N, p.teacher_N, p.rollout_N, divergence=divergence)  # type: ignore[arg-type]
    if divergence == "forward_kl":
        return vocabulary.cross_entropy(*p.inputs, p.written_N, p.teacher_N), expected + p.teacher_N
    return vocabulary.policy_gradient(*p.inputs, p.written_N, p.teacher_N, p.rollout_N, (0.5, 2.0)), expected


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_gradients_of_a_sampled_token_are_those_of_its_surrogate(divergence: str) -> None:
    problem = Problem()
    found, expected = _sampled(problem, divergence)
    for gradient, reference in zip(problem.gradients(found), problem.gradients(expected), strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_log_probability_agrees_with_finite_differences_in_double_precision() -> None:
    problem = Problem(tokens=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda hidden, head: vocabulary.cross_entropy(hidden, head, problem.written_N, problem.teacher_N), problem.inputs
    )


def _every_token(p: Problem) -> tuple[Problem, Tensor]:
    """One hidden state repeated for every token that could be written there, each weighted with its probability."""
    each = Problem(tokens=VOCABULARY, dtype=torch.float64)
    each.hidden_NH = p.hidden_NH[:1].detach().expand(VOCABULARY, -1).clone().requires_grad_()
    each.head_VH = p.head_VH.detach().clone().requires_grad_()
    each.written_N = torch.arange(VOCABULARY)
    each.teacher_N = p.teacher_NV[0].clone()
    own_V = each.logits()[0].detach().log_softmax(-1)
    each.rollout_N = own_V
    return each, own_V


def test_the_mean_of_the_policy_gradient_under_the_student_is_that_of_the_full_reverse_kl() -> None:
    problem = Problem(tokens=1, dtype=torch.float64)
    each, own_V = _every_token(problem)
    loss_V = vocabulary.policy_gradient(*each.inputs, each.written_N, each.teacher_N, each.rollout_N, (0.5, 2.0))
    mean = (loss_V * own_V.exp()).sum()
    full = vocabulary.full_loss(*problem.inputs, torch.arange(VOCABULARY), problem.teacher_NV).sum()
    torch.testing.assert_close(mean, full)
    gradient, reference = torch.autograd.grad(mean, each.head_VH)[0], torch.autograd.grad(full, problem.head_VH)[0]
    torch.testing.assert_close(gradient, reference)


def test_the_mean_of_the_cross_entropy_under_the_teacher_is_the_full_forward_kl() -> None:
    problem = Problem(tokens=1, dtype=torch.float64)
    each, _ = _every_token(problem)
    mean = (vocabulary.cross_entropy(*each.inputs, each.written_N, each.teacher_N) * each.teacher_N.exp()).sum()
    full = vocabulary.full_loss(*problem.inputs, torch.arange(VOCABULARY), problem.teacher_NV, "forward_kl").sum()
    torch.testing.assert_close(mean, full)
    gradient, reference = torch.autograd.grad(mean, each.head_VH)[0], torch.autograd.grad(full, problem.head_VH)[0]
    torch.testing.assert_close(gradient, reference)


def test_an_advantage_on_the_teachers_top_k_alone_is_biased_as_the_compiler_says() -> None:
    """Why E0324 refuses it: the expected step raises every token off the support."""
    problem = Problem(tokens=1, dtype=torch.float64)
    own_V = problem.logits()[0].detach().log_softmax(-1)
    ids_K = problem.top.indices[0]
    logits_1V = problem.logits().detach().requires_grad_()
    log_p = logits_1V.detach()[:, ids_K].log_softmax(-1)
    log_q = problem.top.values.log_softmax(-1)
    advantage_V = torch.zeros(VOCABULARY, dtype=torch.float64).index_copy(0, ids_K, (log_p - log_q)[0])
    surrogate = (own_V.exp() * advantage_V * logits_1V[0].log_softmax(-1)).sum()
    slope_V = torch.autograd.grad(surrogate, logits_1V)[0][0]
    outside_V = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, ids_K, False)
    assert (slope_V[outside_V] < 0).all()


def test_an_unnormalised_reverse_kl_is_least_far_from_the_teacher_as_the_compiler_says() -> None:
    """Why E0326 refuses it: the best student keeps 1/e of the teacher's mass on the support, and the teacher itself is worse."""
    q_K = torch.tensor([0.6, 0.3], dtype=torch.float64)
    p_K = (q_K / math.e).requires_grad_()
    loss = (p_K * (p_K / q_K).log()).sum()
    assert torch.autograd.grad(loss, p_K)[0].abs().max() < 1e-12
    assert loss.item() == pytest.approx(-0.9 / math.e) and (q_K * (q_K / q_K).log()).sum() == 0


def test_a_token_outside_the_importance_bounds_counts_nothing_and_one_inside_by_its_ratio() -> None:
    problem = Problem(tokens=4)
    with torch.no_grad():
        own_N = problem.logits().log_softmax(-1).gather(1, problem.written_N[:, None]).squeeze(1)
    rollout_N = own_N - torch.tensor([0.4, 1.0, 1.5, 3.0]).log()
    loss_N = vocabulary.policy_gradient(*problem.inputs, problem.written_N, problem.teacher_N, rollout_N, (0.5, 2.0))
    expected_N = torch.tensor([0.0, 1.0, 1.5, 0.0]) * (own_N - problem.teacher_N)
    torch.testing.assert_close(loss_N, expected_N, atol=1e-5, rtol=1e-5)
    gradient_NH = torch.autograd.grad(loss_N.sum(), problem.hidden_NH)[0]
    assert gradient_NH.any(dim=-1).tolist() == [False, True, True, False]


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 16 * VOCABULARY * 4)
    problem = Problem(tokens=2000)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        vocabulary.bucket_loss(*problem.inputs, problem.top.indices, problem.top.values).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 2000 * max(WIDTH * 4, K * 8)
