"""What is watched of a student at some of the tokens it wrote. Nothing here is optimised, and nothing has a gradient.

Each of these needs every logit, so it is measured at a sample of the tokens, reading the head once and some rows at a time.

Shapes: M watched tokens, H hidden width, V vocabulary, v rows of the head at a time, K tokens of the support.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .subset import num_per_chunk, support_logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """One number per watched token, float32 or better."""

    coverage_M: Tensor  # the student's probability of the support
    overlap_M: Tensor  # share of the support's ids that are among the student's own K most likely valid ones
    entropy_M: Tensor  # of the student over the whole vocabulary, in nats
    logprob_M: Tensor  # of the token that follows


@torch.no_grad()
def watch(
    hidden_MH: Tensor, head_VH: Tensor, support_ids_MK: Tensor, next_ids_M: Tensor, invalid_ids: Collection[int] = ()
) -> Watched:
    """Look at every logit of some tokens; nothing of size [M, V] is built.

    Args:
        support_ids_MK: int64, distinct within a row.
        next_ids_M: int64, the token that was written.
        invalid_ids: ids that no support holds; they are not among the student's most likely ones either.
    """
    support_MK = support_logits(hidden_MH, head_VH, support_ids_MK)
    written_M = support_logits(hidden_MH, head_VH, next_ids_M.unsqueeze(1)).squeeze(1)
    is_invalid_V = torch.zeros(len(head_VH), dtype=torch.bool, device=head_VH.device)
    is_invalid_V[[one for one in invalid_ids if one < len(head_VH)]] = True

    total_M = torch.full_like(written_M, -torch.inf)  # log of the sum of exp(logit) so far
    mean_M = torch.zeros_like(written_M)  # of the logits so far, under their softmax
    best_Mk = support_MK.new_empty((len(support_MK), 0))
    best_ids_Mk = support_ids_MK.new_empty(best_Mk.shape)
    rows = num_per_chunk(head_VH, len(hidden_MH) * support_MK.element_size())
    for first in range(0, len(head_VH), rows):
        logits_Mv = (hidden_MH @ head_VH[first : first + rows].T).to(support_MK.dtype)
        largest_M1 = logits_Mv.amax(dim=-1, keepdim=True)
        weights_Mv = (logits_Mv - largest_M1).exp_()  # once, for the sum and the mean
        sum_M = weights_Mv.sum(dim=-1)
        chunk_M, chunk_mean_M = largest_M1.squeeze(1) + sum_M.log(), weights_Mv.mul_(logits_Mv).sum(dim=-1) / sum_M
        old_M, total_M = total_M, torch.logaddexp(total_M, chunk_M)
        mean_M = mean_M * (old_M - total_M).exp() + chunk_mean_M * (chunk_M - total_M).exp()

        # Of the chunk alone first: the best so far are few, and putting them beside all logits would copy these.
        valid_Mv = logits_Mv.masked_fill_(is_invalid_V[first : first + rows], -torch.inf)
        chunk_best = valid_Mv.topk(min(support_ids_MK.shape[1], valid_Mv.shape[1]), dim=1)
        best_Mk, best_ids_Mk = (
            torch.cat([best_Mk, chunk_best.values], dim=1),
            torch.cat([best_ids_Mk, chunk_best.indices + first], dim=1),
        )
        if best_Mk.shape[1] > support_ids_MK.shape[1]:
            best_Mk, places = best_Mk.topk(support_ids_MK.shape[1], dim=1)
            best_ids_Mk = best_ids_Mk.gather(1, places)

    return Watched(
        coverage_M=(support_MK.logsumexp(dim=-1) - total_M).exp(),
        overlap_M=num_shared(support_ids_MK, best_ids_Mk).to(support_MK.dtype) / max(1, support_ids_MK.shape[1]),
        entropy_M=total_M - mean_M,
        logprob_M=written_M - total_M,
    )


def num_shared(left: Tensor, right: Tensor) -> Tensor:
    """How many ids the last dimensions of two tensors share: [..., K] and [..., k] to [...]. Ids are distinct on either side."""
    ascending = torch.cat([left, right], dim=-1).sort(dim=-1).values
    return (ascending[..., 1:] == ascending[..., :-1]).sum(dim=-1)
