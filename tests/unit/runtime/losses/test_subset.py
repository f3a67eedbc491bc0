"""The loss from hidden states is the loss from logits: same value, same gradients, without the logits."""

import pytest
import torch
from polymath.runtime.losses import distill, subset
from polymath.runtime.losses.watched import watch
from torch import Tensor

TOKENS, WIDTH, VOCABULARY, K = 37, 16, 53, 6


def _inputs(
    *, tokens: int = TOKENS, k: int = K, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a head, and a teacher's support; with 37 supports of 53 ids nearly every id occurs for several tokens."""
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(tokens, WIDTH, generator=generator).to(dtype)
    head_VH = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    top = torch.randn(tokens, VOCABULARY, generator=generator).mul(2).log_softmax(-1).topk(k, dim=-1)
    return hidden_NH.requires_grad_(), head_VH.requires_grad_(), top.indices, top.values


def _dense(hidden_NH: Tensor, head_VH: Tensor, ids_NK: Tensor, logprobs_NK: Tensor) -> Tensor:
    return distill.token_loss(hidden_NH @ head_VH.T, ids_NK, logprobs_NK).loss_N


def _gradients(loss_N: Tensor, weight_N: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((loss_N * weight_N).sum(), inputs)


@pytest.fixture(params=[subset.CHUNK_BYTES, 1, 300], ids=["in one piece", "one by one", "some at a time"])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "CHUNK_BYTES", request.param)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("k", [1, 2, K, VOCABULARY])
def test_value_and_gradients_are_those_of_the_logits(k: int) -> None:
    inputs = _inputs(k=k)
    weight_N = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1))
    found, expected = subset.token_loss(*inputs), _dense(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pairs = zip(_gradients(found, weight_N, *inputs[:2]), _gradients(expected, weight_N, *inputs[:2]), strict=True)
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)


def test_value_and_gradients_agree_with_finite_differences_in_double_precision() -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs(tokens=5, k=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda hidden, head: subset.token_loss(hidden, head, ids_NK, logprobs_NK), (hidden_NH, head_VH))


@pytest.mark.usefixtures("chunk_bytes")
def test_bfloat16_inputs_give_a_float32_loss_and_gradients_within_their_rounding() -> None:
    hidden_NH, head_VH, *support = _inputs(dtype=torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden_NH, head_VH)]
    found, expected = subset.token_loss(hidden_NH, head_VH, *support), subset.token_loss(*exact, *support)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ones_N = torch.ones(TOKENS)
    pairs = zip(_gradients(found, ones_N, hidden_NH, head_VH), _gradients(expected, ones_N, *exact), strict=True)
    for gradient, reference in pairs:
        assert gradient.dtype == torch.bfloat16
        assert (gradient.float() - reference).abs().max() < 2**-8 * reference.abs().max()  # bfloat16 keeps 8 bits


def test_the_whole_vocabulary_as_support_is_the_full_reverse_kl() -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs(k=VOCABULARY)
    student_NV = (hidden_NH @ head_VH.T).log_softmax(-1)
    teacher_NV = torch.empty_like(student_NV).scatter(1, ids_NK, logprobs_NK)
    expected_N = (student_NV.exp() * (student_NV - teacher_NV)).sum(-1)
    torch.testing.assert_close(subset.token_loss(hidden_NH, head_VH, ids_NK, logprobs_NK), expected_N, atol=1e-5, rtol=1e-5)


def test_a_support_of_one_token_gives_exactly_zero_loss_and_gradient() -> None:
    inputs = _inputs(k=1)
    loss_N = subset.token_loss(*inputs)
    assert torch.equal(loss_N, torch.zeros(TOKENS))
    for gradient in _gradients(loss_N, torch.ones(TOKENS), *inputs[:2]):
        assert not gradient.any()


def test_an_offset_of_the_teachers_row_changes_nothing() -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs()
    shifted = subset.token_loss(hidden_NH, head_VH, ids_NK, logprobs_NK - 5.0)
    torch.testing.assert_close(shifted, subset.token_loss(hidden_NH, head_VH, ids_NK, logprobs_NK), atol=1e-5, rtol=1e-5)


def test_a_student_equal_to_its_teacher_has_neither_loss_nor_gradient() -> None:
    hidden_NH, head_VH, ids_NK, _ = _inputs()
    own_NK = (hidden_NH @ head_VH.T).detach().gather(1, ids_NK)
    loss_N = subset.token_loss(hidden_NH, head_VH, ids_NK, own_NK)
    assert loss_N.abs().max() < 1e-5
    for gradient in _gradients(loss_N, torch.ones(TOKENS), hidden_NH, head_VH):
        assert gradient.abs().max() < 1e-4


def test_the_full_kl_splits_into_support_coverage_and_tail() -> None:
    """KL = rho KL_K + KL_Bernoulli(rho || rho_q) + (1 - rho) KL_tail (method, section 6.2)."""
    hidden_NH, head_VH, ids_NK, _ = _inputs(dtype=torch.float64)
    student_NV = (hidden_NH @ head_VH.T).log_softmax(-1)
    teacher_NV = torch.randn(student_NV.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    inside_NV = torch.zeros_like(student_NV, dtype=torch.bool).scatter(1, ids_NK, True)
    rho, rho_q = (log.exp().where(inside_NV, 0).sum(-1) for log in (student_NV, teacher_NV))
    assert torch.allclose(watch(hidden_NH, head_VH, ids_NK, ids_NK[:, 0]).coverage_M, rho)
    tails = [log.masked_fill(inside_NV, -torch.inf).log_softmax(-1).masked_fill(inside_NV, 0) for log in (student_NV, teacher_NV)]
    tail = (tails[0].exp() * (tails[0] - tails[1])).sum(-1)
    bernoulli = rho * (rho / rho_q).log() + (1 - rho) * ((1 - rho) / (1 - rho_q)).log()
    on_support = subset.token_loss(hidden_NH, head_VH, ids_NK, teacher_NV.gather(1, ids_NK))
    full = (student_NV.exp() * (student_NV - teacher_NV)).sum(-1)
    torch.testing.assert_close(rho * on_support + bernoulli + (1 - rho) * tail, full)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_poison_in_head_rows_outside_the_supports_changes_nothing(dtype: torch.dtype) -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs(tokens=4, dtype=dtype)
    poisoned_VH = head_VH.detach().clone()
    outside_V = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, ids_NK.reshape(-1), False)
    poisoned_VH[outside_V] = torch.nan
    poisoned_VH.requires_grad_()
    clean, found = (subset.token_loss(hidden_NH, head, ids_NK, logprobs_NK) for head in (head_VH, poisoned_VH))
    assert torch.equal(found, clean)
    pairs = zip(
        _gradients(found, torch.ones(4), hidden_NH, poisoned_VH), _gradients(clean, torch.ones(4), hidden_NH, head_VH), strict=True
    )
    for gradient, reference in pairs:
        assert torch.equal(gradient, reference)


def test_head_rows_outside_the_supports_get_exactly_no_gradient() -> None:
    inputs = _inputs(tokens=4)
    gradient_VH = _gradients(subset.token_loss(*inputs), torch.ones(4), inputs[1])[0]
    outside_V = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, inputs[2].reshape(-1), False)
    assert outside_V.any() and not gradient_VH[outside_V].any()
    assert gradient_VH[~outside_V].any(dim=-1).all()


def test_a_batch_in_parts_has_the_same_values_and_gradients() -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs()
    weight_N = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1))
    whole = _gradients(subset.token_loss(hidden_NH, head_VH, ids_NK, logprobs_NK), weight_N, hidden_NH, head_VH)
    pieces = zip(*(tensor.split(10) for tensor in (hidden_NH, ids_NK, logprobs_NK, weight_N)), strict=True)
    total = sum(
        (subset.token_loss(hidden_nH, head_VH, ids_nK, logprobs_nK) * weight_n).sum()
        for hidden_nH, ids_nK, logprobs_nK, weight_n in pieces
    )
    for gradient, reference in zip(torch.autograd.grad(total, (hidden_NH, head_VH)), whole, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_give_an_empty_loss_that_still_reaches_hidden_states_and_head(dtype: torch.dtype) -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs(dtype=dtype)
    loss_N = subset.token_loss(hidden_NH[:0], head_VH, ids_NK[:0], logprobs_NK[:0])
    assert loss_N.shape == (0,)
    for gradient, like in zip(torch.autograd.grad(loss_N.sum(), (hidden_NH, head_VH)), (hidden_NH, head_VH), strict=True):
        assert torch.equal(gradient, torch.zeros_like(like))


def test_a_repeated_id_counts_as_often_as_it_is_there_as_with_logits() -> None:
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs()
    inputs = (hidden_NH, head_VH, ids_NK.index_copy(1, torch.tensor([2]), ids_NK[:, :1]), logprobs_NK)
    torch.testing.assert_close(subset.token_loss(*inputs), _dense(*inputs), atol=1e-5, rtol=1e-5)
    ones_N = torch.ones(TOKENS)
    pairs = zip(_gradients(subset.token_loss(*inputs), ones_N, head_VH), _gradients(_dense(*inputs), ones_N, head_VH), strict=True)
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)


def test_a_token_that_the_student_cannot_write_makes_no_nan() -> None:
    hidden_NH = torch.tensor([[1.0, 0.0]], requires_grad=True)
    head_VH = torch.tensor([[1.0, 0.0], [-1e30, 0.0], [0.5, 0.0]], requires_grad=True)
    loss_N = subset.token_loss(hidden_NH, head_VH, torch.tensor([[0, 1, 2]]), torch.tensor([[-0.5, -1.5, -2.5]]))
    assert loss_N.isfinite().all()
    for gradient in _gradients(loss_N, torch.ones(1), hidden_NH, head_VH):
        assert gradient.isfinite().all()


def test_the_memory_in_use_does_not_grow_with_tokens_times_vocabulary() -> None:
    """One chunk more than the gradients themselves, seen through the largest single allocation."""
    hidden_NH, head_VH, ids_NK, logprobs_NK = _inputs(tokens=2000)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        subset.token_loss(hidden_NH, head_VH, ids_NK, logprobs_NK).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 2000 * max(WIDTH * 4, K * 8)
