"""Distillation losses in plain formulas from logits: what `subset.py` and `vocabulary.py` compute from hidden states (stage 3).

What it does: one token's divergence on the teacher's most likely tokens K, where P and Q are the student and the teacher
renormalised on it, with or without a bin for the rest; the same at the written token alone; and the student's coverage of K. The
default, reverse KL `sum_K P log(P / Q)`, is salient vocabulary alignment. Full vocabulary is the support of all valid ids.
What it does not do: choose teachers or supports (`stages/distill.py`), weight tokens (`losses/weights.py`). There is no
temperature and no reward in it; a divergence on a support is differentiated, never used as an advantage.

Source: Agents-A1 (arXiv 2606.30616), knowledge-action section, the objective of on-policy distillation; `divergences.py` and
`vocabulary.py` name those of the other losses.

Shapes: N selected positions, V vocabulary, K tokens of the support.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .divergences import DivergenceName
from .vocabulary import teacher_rest


@dataclass(frozen=True, kw_only=True, slots=True)
class SvaTerms:
    """The loss of each token, and how much of the student it saw."""

    loss_N: Tensor  # float32, at least 0 up to rounding
    coverage_N: Tensor  # the student's probability of the support, detached: watched, never optimised


def token_loss(
    logits_NV: Tensor,
    support_ids_NK: Tensor,
    support_logprobs_NK: Tensor,
    *,
    divergence: DivergenceName = "reverse_kl",
    tail: Literal["none", "bucket"] = "none",
) -> SvaTerms:
    """The divergence on the support, in nats.

    Without a bucket the gradient with respect to the student's logits is exactly 0 off the support, so nothing pushes mass back
    into it: watch the coverage. Of reverse KL it is `P (log P/Q - KL)` on the support.

    Args:
        logits_NV: the student's, any float dtype; computed in float32 or better.
        support_ids_NK: int64, the teacher's most likely valid ids.
        support_logprobs_NK: the teacher's log-probabilities of them; any offset per row cancels, but for a bucket.
    """
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    support_logits_NK = logits_NV.gather(1, support_ids_NK)
    student, teacher = support_logits_NK, support_logprobs_NK.to(logits_NV.dtype)
    if tail == "bucket":
        rest_N1 = logits_NV.scatter(1, support_ids_NK, -torch.inf).logsumexp(dim=-1, keepdim=True)
        student, teacher = torch.cat([student, rest_N1], dim=1), torch.cat([teacher, teacher_rest(teacher)], dim=1)
    loss_N = _divergence(divergence, student.log_softmax(dim=-1), teacher.log_softmax(dim=-1))

    with torch.no_grad():
        coverage_N = (support_logits_NK.logsumexp(dim=-1) - logits_NV.logsumexp(dim=-1)).exp()
    return SvaTerms(loss_N=loss_N, coverage_N=coverage_N)


def sampled_loss(
    logits_NV: Tensor,
    written_ids_N: Tensor,
    teacher_logprobs_N: Tensor,
    rollout_logprobs_N: Tensor,
    *,
    divergence: Literal["reverse_kl", "forward_kl"],
    importance: tuple[float, float] = (0.5, 2.0),
) -> Tensor:
    """loss_N whose gradient estimates that of the whole vocabulary's divergence from the written token alone.

    Of reverse KL, at tokens of the student: `w sg(log pi - log q) log pi`, with the truncated weight `w = sg(pi / mu)` of a token
    that the engine wrote with probability mu. Of forward KL, at tokens of the teacher: `-log pi`. The values are those of the
    surrogates.
    """
    own_N = logits_NV.log_softmax(dim=-1).gather(1, written_ids_N[:, None]).squeeze(1)
    if divergence == "forward_kl":
        return -own_N
    ratio_N = (own_N - rollout_logprobs_N).exp().detach()
    low, high = importance
    weight_N = torch.where((ratio_N >= low) & (ratio_N <= high), ratio_N, 0.0)
    return weight_N * (own_N - teacher_logprobs_N).detach() * own_N


def _divergence(name: DivergenceName, log_p: Tensor, log_q: Tensor) -> Tensor:
    if name == "reverse_kl":
        return _kl(log_p, log_q)
    if name == "forward_kl":
        return _kl(log_q, log_p)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Where P is 0 the term is 0 (its limit); -inf - -inf or 0 * -inf would be NaN.
    possible = log_p.isfinite()
    gap = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (log_p.exp() * gap).sum(dim=-1)
