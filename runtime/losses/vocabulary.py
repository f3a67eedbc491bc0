"""Distillation losses that need the student's logits of the whole vocabulary, from hidden states and some tokens at a time.

What it does: three losses that a support's own logits cannot give: a support with a bin for the rest (`bucket`), every valid token
as the support (`full`), and the written token alone (`sampled`). Each makes the logits of as many tokens as CHUNK_BYTES hold, in
float32, and makes them again in the backward pass, so that nothing of size [N, V] ever exists. Where the head is split over the
ranks of a tensor-parallel group (`shard.py`), a rank makes the logits of its own rows.
What it does not do: differentiate twice.

Sources: Agents-A1 (arXiv 2606.30616), section 6, for the support; MiMo-V2-Flash (multi-teacher on-policy distillation) for the
policy gradient with truncated importance weights. `distill.py` has the same losses from logits.

Shapes: N tokens, n of them at a time, H hidden width, V vocabulary (or the rows of this rank's shard), U valid ids, K tokens of the
support. Ids are always those of the whole vocabulary.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .divergences import DIVERGENCES, Divergence, DivergenceName
from .shard import WHOLE, WholeVocabulary

CHUNK_BYTES = 64 << 20  # of float32 logits that exist at once; a few tensors of the same size are made of them
CUDA_CHUNK_BYTES = 256 << 20
LARGEST_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any bounds, and still finite in float32

Terms = Callable[..., tuple[Tensor, Tensor]]
"""From logits [n, V], whatever else stands at the tokens and the shard to losses [n] and their gradient [n, V] in the logits."""


def bucket_loss(
    hidden_NH: Tensor,
    head_VH: Tensor,
    support_ids_NK: Tensor,
    support_logprobs_NK: Tensor,
    divergence: DivergenceName = "reverse_kl",
    shard: WholeVocabulary = WHOLE,
) -> Tensor:
    """The divergence on K + 1 bins: the support's tokens, and the rest of the mass of both sides.

    Args:
        support_ids_NK: int64, none twice in a row.
        support_logprobs_NK: the teacher's log-probabilities of them in its whole vocabulary.

    Returns:
        loss_N, float32 whatever the inputs (float64 if they are).
    """
    terms = partial(_bucket_terms, divergence=DIVERGENCES[divergence])
    return _FromLogits.apply(hidden_NH, head_VH, terms, shard, support_ids_NK, support_logprobs_NK)  # type: ignore[no-any-return]


def full_loss(
    hidden_NH: Tensor,
    head_VH: Tensor,
    valid_ids_U: Tensor,
    logprobs_NU: Tensor,
    divergence: DivergenceName = "reverse_kl",
    shard: WholeVocabulary = WHOLE,
) -> Tensor:
    """The divergence on all valid tokens, both sides renormalised on them.

    Args:
        valid_ids_U: int64, the support of every token.
        logprobs_NU: the teacher's log-probabilities of them; any offset per row cancels.
    """
    rows_U, here_U = shard.find(valid_ids_U)
    if here_U is not None:
        rows_U, logprobs_NU = rows_U[here_U], logprobs_NU[:, here_U]
    rows_UH = head_VH if len(rows_U) == len(head_VH) else head_VH[rows_U]
    return _FromLogits.apply(hidden_NH, rows_UH, DIVERGENCES[divergence], shard, logprobs_NU)  # type: ignore[no-any-return]


def policy_gradient(
    hidden_NH: Tensor,
    head_VH: Tensor,
    written_ids_N: Tensor,
    teacher_logprobs_N: Tensor,
    rollout_logprobs_N: Tensor,
    importance: tuple[float, float],
    shard: WholeVocabulary = WHOLE,
) -> Tensor:
    """Reverse KL at tokens that the student wrote. The value estimates it, `w log(pi / q)`; the gradient is not the value's but the
    policy gradient `w log(pi / q) grad log pi`, whose mean under the student is that of the full reverse KL.

    Args:
        teacher_logprobs_N: log-probability of the written token under the teacher.
        rollout_logprobs_N: under the engine that wrote it. The weight w is the student's probability over the engine's, and 0 where
            that lies outside of `importance`.
    """
    terms = partial(_policy_gradient_terms, importance=importance)
    extras = (written_ids_N, teacher_logprobs_N, rollout_logprobs_N)
    return _FromLogits.apply(hidden_NH, head_VH, terms, shard, *extras)  # type: ignore[no-any-return]


def cross_entropy(
    hidden_NH: Tensor, head_VH: Tensor, written_ids_N: Tensor, teacher_logprobs_N: Tensor, shard: WholeVocabulary = WHOLE
) -> Tensor:
    """Forward KL at tokens that the teacher wrote: the estimate `log(q / pi)`, with the gradient of cross-entropy."""
    extras = (written_ids_N, teacher_logprobs_N)
    return _FromLogits.apply(hidden_NH, head_VH, _cross_entropy_terms, shard, *extras)  # type: ignore[no-any-return]


def teacher_rest(support_logprobs_NK: Tensor) -> Tensor:
    """[N, 1]: the log-probability of all that is not in the support. No smaller than a float32 can tell from 0."""
    rest_N1 = 1 - support_logprobs_NK.exp().sum(dim=-1, keepdim=True)
    return rest_N1.clamp_min(torch.finfo(torch.float32).eps).log()


def _bucket_terms(
    logits_nV: Tensor, ids_nK: Tensor, logprobs_nK: Tensor, shard: WholeVocabulary, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    support_nK = shard.gather(logits_nV, ids_nK)
    rest_nV = shard.fill_(logits_nV, ids_nK, torch.full_like(support_nK, -torch.inf))
    rest_n1 = shard.logsumexp(rest_nV)
    logprobs_nK = logprobs_nK.to(logits_nV.dtype)
    bins, teacher_bins = torch.cat([support_nK, rest_n1], dim=1), torch.cat([logprobs_nK, teacher_rest(logprobs_nK)], dim=1)
    loss_n, slope = divergence(bins, teacher_bins)
    slope_nV = rest_nV.sub_(rest_n1).exp_().mul_(slope[:, -1:])
    return loss_n, shard.fill_(slope_nV, ids_nK, slope[:, :-1])


def _policy_gradient_terms(
    logits_nV: Tensor,
    ids_n: Tensor,
    teacher_n: Tensor,
    rollout_n: Tensor,
    shard: WholeVocabulary,
    importance: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    own_n, slope_nV = _logprob(logits_nV, ids_n, shard)
    ratio_n = (own_n - rollout_n).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    low, high = importance
    loss_n = (own_n - teacher_n).mul_(ratio_n.masked_fill((ratio_n < low) | (ratio_n > high), 0.0))
    return loss_n, slope_nV.mul_(loss_n.unsqueeze(1))


def _cross_entropy_terms(logits_nV: Tensor, ids_n: Tensor, teacher_n: Tensor, shard: WholeVocabulary) -> tuple[Tensor, Tensor]:
    own_n, slope_nV = _logprob(logits_nV, ids_n, shard)
    return teacher_n.to(own_n.dtype) - own_n, slope_nV.neg_()


def _logprob(logits_nV: Tensor, ids_n: Tensor, shard: WholeVocabulary) -> tuple[Tensor, Tensor]:
    """Of one id, and its gradient in the logits: 1 at the id, less every id's probability."""
    logprobs_nV = shard.log_softmax(logits_nV)
    own_n1 = shard.gather(logprobs_nV, ids_n.unsqueeze(1))
    return own_n1.squeeze(1), shard.fill_(logprobs_nV.exp_().neg_(), ids_n.unsqueeze(1), 1 - own_n1.exp())


class _FromLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head_VH: Tensor, terms: Terms, shard: WholeVocabulary, *extras: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_NH, head_VH, *extras)
        ctx.terms = partial(terms, shard=shard)
        ctx.shard = shard
        pieces = _pieces(hidden_NH, head_VH, shard, extras)
        return torch.cat([ctx.terms(logits_nV, *own)[0] for _, logits_nV, own in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, head_VH, *extras = ctx.saved_tensors
        needs_hidden, needs_head, *_ = ctx.needs_input_grad
        gradient_NH = torch.empty_like(hidden_NH)
        total_VH = torch.zeros_like(head_VH, dtype=_at_least_float32(head_VH)) if needs_head else None
        for piece, logits_nV, own in _pieces(hidden_NH, head_VH, ctx.shard, tuple(extras)):
            slope_nV = ctx.terms(logits_nV, *own)[1].mul_(grad_outputs[0][piece].unsqueeze(1)).to(hidden_NH.dtype)
            if needs_hidden:
                gradient_NH[piece] = slope_nV @ head_VH
            if total_VH is not None:
                total_VH += slope_nV.T @ hidden_NH[piece]
        nothing = (None,) * (2 + len(extras))
        return (gradient_NH if needs_hidden else None, None if total_VH is None else total_VH.to(head_VH.dtype), *nothing)


def _pieces(
    hidden_NH: Tensor, head_VH: Tensor, shard: WholeVocabulary, extras: tuple[Tensor, ...]
) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
    """Some tokens, their logits and what else stands there; one empty piece where there are none."""
    dtype = _at_least_float32(head_VH)
    rows_VH = head_VH.to(dtype)
    rows = shard.most_rows(len(head_VH))
    count = max(1, (CUDA_CHUNK_BYTES if head_VH.is_cuda else CHUNK_BYTES) // (rows * dtype.itemsize))
    for start in range(0, max(1, len(hidden_NH)), count):
        piece = slice(start, start + count)
        yield piece, hidden_NH[piece].to(dtype) @ rows_VH.T, tuple(extra[piece] for extra in extras)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
