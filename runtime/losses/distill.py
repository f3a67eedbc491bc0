"""Salient vocabulary alignment: reverse KL to a teacher on the teacher's most likely tokens (stage 3).

What it does: one token's loss `sum_K P log(P / Q)`, where K is the teacher's top-k and P and Q are the student and the teacher
renormalised on it; and the student's coverage of K.
What it does not do: choose teachers or supports (`stages/distill.py`), weight tokens (`losses/weights.py`). There is no
temperature, no importance weight, no clip and no reward in it; the loss is differentiated, never used as an advantage.

Source: Agents-A1 (arXiv 2606.30616), knowledge-action section, the objective of on-policy distillation.

Shapes: N selected positions, V vocabulary, K tokens of the support.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SvaTerms:
    """The loss of each token, and how much of the student it saw."""

    loss_N: Tensor  # float32, at least 0 up to rounding
    coverage_N: Tensor  # the student's probability of the support, detached: watched, never optimised


def token_loss(logits_NV: Tensor, support_ids_NK: Tensor, support_logprobs_NK: Tensor) -> SvaTerms:
    """Reverse KL(P || Q) on the support, in nats.

    The gradient with respect to the student's logits is `P (log P/Q - KL)` on the support and exactly 0 elsewhere, so nothing here
    pushes mass back into the support: watch the coverage.

    Args:
        logits_NV: the student's, any float dtype; computed in float32.
        support_ids_NK: int64, the teacher's most likely valid ids.
        support_logprobs_NK: the teacher's log-probabilities of them; any offset per row cancels.
    """
    logits_NV = logits_NV.float()
    support_logits_NK = logits_NV.gather(1, support_ids_NK)
    student_NK = support_logits_NK.log_softmax(dim=-1)
    teacher_NK = support_logprobs_NK.float().log_softmax(dim=-1)

    # Where the student has probability 0 the term is 0 (its limit); -inf - -inf or 0 * -inf would be NaN.
    possible_NK = student_NK.isfinite()
    gap_NK = torch.where(possible_NK, student_NK, 0.0) - torch.where(possible_NK, teacher_NK, 0.0)
    loss_N = (student_NK.exp() * gap_NK).sum(dim=-1)

    with torch.no_grad():
        coverage_N = (support_logits_NK.logsumexp(dim=-1) - logits_NV.logsumexp(dim=-1)).exp()
    return SvaTerms(loss_N=loss_N, coverage_N=coverage_N)
