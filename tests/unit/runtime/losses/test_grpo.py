"""Promises of the clipped policy-gradient loss."""

import torch
from polymath.runtime.losses import grpo

CLIP = (0.2, 0.28)


def _loss_and_gradient(ratio: float, advantage: float) -> tuple[float, float]:
    """The loss of one token whose new probability is `ratio` times the old one, and its slope in the log-probability."""
    logits_NV = torch.tensor([[0.3, -0.7, 1.1]], requires_grad=True)
    label_N = torch.tensor([1])
    logprob_N = logits_NV.detach().log_softmax(-1)[:, 1]
    old_N = logprob_N - torch.tensor([ratio]).log()
    terms = grpo.token_loss(logits_NV, label_N, old_N, torch.tensor([advantage]), clip=CLIP)
    terms.loss_N.sum().backward()
    assert logits_NV.grad is not None
    return terms.loss_N.item(), logits_NV.grad[0, 1].item()


def test_a_zero_advantage_moves_nothing() -> None:
    assert _loss_and_gradient(1.1, 0.0) == (0.0, 0.0)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    logits_NV = torch.tensor([[0.3, -0.7, 1.1]], requires_grad=True)
    logprob_N = logits_NV.log_softmax(-1)[:, 1]
    (expected_NV,) = torch.autograd.grad(-2.0 * logprob_N.sum(), logits_NV, retain_graph=True)
    terms = grpo.token_loss(logits_NV, torch.tensor([1]), logprob_N.detach(), torch.tensor([2.0]), clip=CLIP)
    (gradient_NV,) = torch.autograd.grad(terms.loss_N.sum(), logits_NV)
    assert torch.allclose(gradient_NV, expected_NV, atol=1e-6)
    assert terms.ratio_N.item() == 1.0 and terms.clipped_N.item() == 0.0


def test_the_clip_is_wider_above_than_below() -> None:
    assert _loss_and_gradient(1.25, 1.0)[1] < 0  # above 1.2, but inside 1.28: still learns
    assert _loss_and_gradient(1.30, 1.0)[1] == 0
    assert _loss_and_gradient(0.85, -1.0)[1] > 0
    assert _loss_and_gradient(0.75, -1.0)[1] == 0  # below 0.8: enough was taken away
    assert _loss_and_gradient(0.75, 1.0)[1] < 0  # the clip never stops a repair
    assert _loss_and_gradient(1.30, -1.0)[1] > 0


def test_the_clip_fraction_counts_the_tokens_it_stopped() -> None:
    logits_NV = torch.zeros(3, 4)
    logprob = logits_NV.log_softmax(-1)[0, 0]
    old_N = torch.stack([logprob, logprob - 1.0, logprob - 1.0])
    terms = grpo.token_loss(logits_NV, torch.zeros(3, dtype=torch.long), old_N, torch.tensor([1.0, 1.0, -1.0]), clip=CLIP)
    assert terms.clipped_N.tolist() == [0.0, 1.0, 0.0]


def test_the_reference_term_is_zero_on_the_reference_and_positive_off_it() -> None:
    logits_NV = torch.tensor([[0.3, -0.7, 1.1]] * 2)
    logprob_N = logits_NV.log_softmax(-1)[:, 0]
    reference_N = logprob_N + torch.tensor([0.0, 0.5])
    arguments = (logits_NV, torch.zeros(2, dtype=torch.long), logprob_N, torch.zeros(2))
    terms = grpo.token_loss(*arguments, clip=CLIP, reference_logprobs_N=reference_N, reference_kl=0.1)
    assert terms.reference_kl_N[0] == 0 and terms.reference_kl_N[1] > 0
    assert torch.allclose(terms.loss_N, 0.1 * terms.reference_kl_N)


def test_the_entropy_bonus_lowers_the_loss_of_an_uncertain_policy() -> None:
    logits_NV = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    arguments = (logits_NV, torch.zeros(2, dtype=torch.long), logits_NV.log_softmax(-1)[:, 0], torch.zeros(2))
    terms = grpo.token_loss(*arguments, clip=CLIP, entropy=0.5)
    assert torch.allclose(terms.entropy_N[0], torch.tensor(2.0).log())
    assert torch.allclose(terms.loss_N, -0.5 * terms.entropy_N)


def test_impossible_tokens_and_wild_ratios_make_no_nan() -> None:
    logits_NV = torch.tensor([[0.0, -torch.inf, 1.0], [50.0, -50.0, 0.0]], requires_grad=True)
    old_N = torch.tensor([-0.5, -200.0])
    terms = grpo.token_loss(logits_NV, torch.tensor([0, 1]), old_N, torch.tensor([1.0, -1.0]), clip=CLIP, entropy=0.1)
    terms.loss_N.sum().backward()
    assert logits_NV.grad is not None
    assert terms.loss_N.isfinite().all() and logits_NV.grad.isfinite().all() and terms.entropy_N.isfinite().all()


def _reference_kl(log_ratio: float) -> tuple[float, float]:
    """The reference term of one token whose log-probability is that far below the reference's, and its slope in the logit."""
    logits_NV = torch.tensor([[0.0, 30.0]], requires_grad=True)
    logprob_N = logits_NV.detach().log_softmax(-1)[:, 0]
    arguments = (logits_NV, torch.tensor([0]), logprob_N, torch.zeros(1))
    terms = grpo.token_loss(*arguments, clip=CLIP, reference_logprobs_N=logprob_N + log_ratio, reference_kl=1.0)
    terms.loss_N.sum().backward()
    assert logits_NV.grad is not None
    return terms.reference_kl_N.item(), logits_NV.grad[0, 0].item()


def test_the_reference_term_never_pushes_a_policy_further_away() -> None:
    assert _reference_kl(1.0)[1] < 0 < _reference_kl(-1.0)[1]
    assert _reference_kl(-25.0)[1] > 0, "far above its reference the token still comes down"
    assert _reference_kl(25.0)[1] <= 0, "and far below it does not go on falling"


def test_the_reference_term_is_exact_where_policy_and_reference_nearly_agree() -> None:
    logits_NV = torch.linspace(-2, 2, 64).repeat(64, 1)
    labels_N = torch.arange(64)
    logprob_N = logits_NV.log_softmax(-1).gather(1, labels_N[:, None]).squeeze(1)
    reference_N = logprob_N + torch.linspace(-1e-3, 1e-3, 64)
    apart_N = (reference_N - logprob_N).double()
    arguments = (logits_NV, labels_N, logprob_N, torch.zeros(64))
    terms = grpo.token_loss(*arguments, clip=CLIP, reference_logprobs_N=reference_N, reference_kl=1.0)
    assert torch.allclose(terms.reference_kl_N.double(), apart_N.expm1() - apart_N, rtol=1e-3, atol=1e-12)
    assert (terms.reference_kl_N >= 0).all()
