"""Divergences of a student from its teacher on the bins of a support, each with its gradient in the student's logits.

What it does: renormalises both sides on the bins, sums over them and differentiates by hand, so that the losses from hidden states
(`subset.py`, `vocabulary.py`) save one tensor for the backward pass. What it does not do: choose bins or make logits. `distill.py`
has the same in plain formulas, for autograd.

Sources: Agents-A1 (arXiv 2606.30616), section 6, for reverse KL on a renormalised support; Agarwal et al. 2024 (GKD,
arXiv 2306.13649), equation 2, for the generalised Jensen-Shannon divergence, here with an even mixture.

Shapes: N tokens, K bins.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .shard import WHOLE, WholeVocabulary

DivergenceName = Literal["reverse_kl", "forward_kl", "jsd"]
Divergence = Callable[..., tuple[Tensor, Tensor]]
"""From the student's logits [N, K], in float32 or better, and the teacher's log-probabilities [N, K] to the loss [N] in nats and
its gradient [N, K] in the logits. An offset of a row cancels in both. Bins may be split over ranks, as `shard` says."""


def reverse_kl(logits_NK: Tensor, teacher_logprobs_NK: Tensor, shard: WholeVocabulary = WHOLE) -> tuple[Tensor, Tensor]:
    """`sum P log(P / Q)`, with the gradient `P (log(P / Q) - loss)`."""
    student_NK, teacher_NK = _log_softmaxes(logits_NK, teacher_logprobs_NK, shard)
    # Where the student has probability 0 the term is 0 (its limit); -inf - -inf or 0 * -inf would be NaN.
    possible_NK = student_NK.isfinite()
    gap_NK = student_NK.masked_fill(~possible_NK, 0.0).sub_(teacher_NK.masked_fill_(~possible_NK, 0.0))
    student_NK.exp_()
    loss_N = shard.sum(student_NK * gap_NK)
    return loss_N, gap_NK.sub_(loss_N.unsqueeze(1)).mul_(student_NK)


def forward_kl(logits_NK: Tensor, teacher_logprobs_NK: Tensor, shard: WholeVocabulary = WHOLE) -> tuple[Tensor, Tensor]:
    """`sum Q log(Q / P)`, with the gradient `P - Q`. Infinite where the student rules out what its teacher does not."""
    student_NK, teacher_NK = _log_softmaxes(logits_NK, teacher_logprobs_NK, shard)
    possible_NK = teacher_NK.isfinite()
    gap_NK = teacher_NK.masked_fill(~possible_NK, 0.0).sub_(student_NK.masked_fill(~possible_NK, 0.0))
    teacher_NK.exp_()
    return shard.sum(teacher_NK * gap_NK), student_NK.exp_().sub_(teacher_NK)


def jsd(logits_NK: Tensor, teacher_logprobs_NK: Tensor, shard: WholeVocabulary = WHOLE) -> tuple[Tensor, Tensor]:
    """`sum P log(P / M) / 2 + Q log(Q / M) / 2` with `M = (P + Q) / 2`; the gradient is `P (g - sum P g)`, `g = log(P / M) / 2`."""
    student_NK, teacher_NK = _log_softmaxes(logits_NK, teacher_logprobs_NK, shard)
    mixture_NK = torch.logaddexp(student_NK, teacher_NK).sub_(math.log(2))
    halves = []
    for side_NK in (student_NK, teacher_NK):
        gap_NK = (side_NK - mixture_NK).masked_fill_(~side_NK.isfinite(), 0.0)
        halves.append((side_NK.exp(), gap_NK.div_(2)))
    (student_NK, gap_NK), (teacher_NK, teacher_gap_NK) = halves
    student_loss_N = shard.sum(student_NK * gap_NK)
    loss_N = student_loss_N + shard.sum(teacher_NK * teacher_gap_NK)
    return loss_N, gap_NK.sub_(student_loss_N.unsqueeze(1)).mul_(student_NK)


DIVERGENCES: dict[DivergenceName, Divergence] = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "jsd": jsd}


def _log_softmaxes(logits_NK: Tensor, teacher_logprobs_NK: Tensor, shard: WholeVocabulary) -> tuple[Tensor, Tensor]:
    student_NK = shard.log_softmax(logits_NK)
    return student_NK, shard.log_softmax(teacher_logprobs_NK.to(student_NK.dtype))
