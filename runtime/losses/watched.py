"""What is watched of a student at some of the tokens it wrote. Nothing here is optimised, and nothing has a gradient.

Each of these needs every logit, so it is measured at a sample of the tokens, reading the head once and some rows at a time; on a
shard (`shard.py`) each rank reads its own rows, and all ranks see the same.

Shapes: M watched tokens, H hidden width, V vocabulary (or the rows of this rank's shard), v rows of the head at a time, K tokens of
the support.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shard import WHOLE, WholeVocabulary
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
    hidden_MH: Tensor,
    head_VH: Tensor,
    support_ids_MK: Tensor,
    next_ids_M: Tensor,
    invalid_ids: Collection[int] = (),
    shard: WholeVocabulary = WHOLE,
) -> Watched:
    """Look at every logit of some tokens; nothing of size [M, V] is built.

    Args:
        support_ids_MK: int64, distinct within a row.
        next_ids_M: int64, the token that was written.
        invalid_ids: ids that no support holds; they are not among the student's most likely ones either.
    """
    support_MK = support_logits(hidden_MH, head_VH, support_ids_MK, shard)
    written_M = support_logits(hidden_MH, head_VH, next_ids_M.unsqueeze(1), shard).squeeze(1)
    ids_V = torch.arange(len(head_VH), device=head_VH.device) + shard.first
    is_invalid_V = torch.isin(ids_V, ids_V.new_tensor(list(invalid_ids)))

    total_M = torch.full_like(written_M, -torch.inf)  # log of the sum of exp(logit) so far
    mean_M = torch.zeros_like(written_M)  # of the logits so far, under their softmax
    best_MK = torch.full_like(support_MK, -torch.inf)
    best_ids_MK = -1 - torch.arange(best_MK.shape[1], device=head_VH.device).expand_as(best_MK)  # none that a support has
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
        chunk = valid_Mv.topk(min(best_MK.shape[1], valid_Mv.shape[1]), dim=1)
        best_MK, best_ids_MK = _best([best_MK, chunk.values], [best_ids_MK, chunk.indices + shard.first + first], best_MK.shape[1])

    own_M, total_M = total_M, shard.logsumexp(total_M.unsqueeze(1)).squeeze(1)
    mean_M = shard.total(mean_M * (own_M - total_M).exp())
    _, best_ids_MK = _best([shard.candidates(best_MK)], [shard.candidates(best_ids_MK)], best_MK.shape[1])
    return Watched(
        coverage_M=(support_MK.logsumexp(dim=-1) - total_M).exp(),
        overlap_M=num_shared(support_ids_MK, best_ids_MK).to(support_MK.dtype) / max(1, support_ids_MK.shape[1]),
        entropy_M=total_M - mean_M,
        logprob_M=written_M - total_M,
    )


def _best(values: Sequence[Tensor], ids: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The largest of some values, and their ids."""
    best_MK, places = torch.cat(list(values), dim=1).topk(count, dim=1)
    return best_MK, torch.cat(list(ids), dim=1).gather(1, places)


def num_shared(left: Tensor, right: Tensor) -> Tensor:
    """How many ids the last dimensions of two tensors share: [..., K] and [..., k] to [...]. Ids are distinct on either side."""
    ascending = torch.cat([left, right], dim=-1).sort(dim=-1).values
    return (ascending[..., 1:] == ascending[..., :-1]).sum(dim=-1)
