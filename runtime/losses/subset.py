"""Divergences on a support from hidden states: the losses of `distill.py` without the logits of a whole vocabulary.

What it does: the loss needs a token's logits on its support only, so it multiplies the hidden state by those rows of the head
and by no others. The product and both gradients are sparse matrix products, none of which copies a row of the head per token:

    logits_NK = hidden_NH . head_VH[support]       sampled dense-dense product (gathered in chunks on CUDA)
    d hidden  = w_NK x head_VH[support]            weighted bags of head rows, one bag per token
    d head    = w_NK' x hidden_NH                  weighted bags of hidden states, one bag per id, ids sorted

with `w = d loss * slope`, where slope is the divergence's gradient in the logits (`divergences.py`), for reverse KL
`P (log P/Q - KL)`. Every row of the head's gradient is summed in one go and written once.
Where the head is split over the ranks of a tensor-parallel group (`shard.py`), a rank multiplies by the rows that it has; the
logits are added up over the group, and each rank has the gradient of its own rows and its part of the hidden states'.
What it does not do: differentiate twice; touch a row of the head outside all supports (a NaN there changes nothing).

The head's gradient is one dense [V, H] tensor, because sharding reduces it as such. On a CPU its memory comes zeroed from the
kernel, page by page as rows are written, so that rows in no support cost nothing here.

Shapes: N tokens, H hidden width, V vocabulary, K tokens of the support, U ids that are in some support, E entries of all supports
whose rows are here.
"""

import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .divergences import DIVERGENCES, Divergence, DivergenceName
from .shard import WHOLE, WholeVocabulary

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")  # used within functions only

CHUNK_BYTES = 4 << 20  # of whatever is computed piece by piece; larger than this was slower on a CPU, smaller as well
CUDA_CHUNK_BYTES = 256 << 20


def token_loss(
    hidden_NH: Tensor,
    head_VH: Tensor,
    support_ids_NK: Tensor,
    support_logprobs_NK: Tensor,
    divergence: DivergenceName = "reverse_kl",
    shard: WholeVocabulary = WHOLE,
) -> Tensor:
    """The divergence on the support, in nats; value and gradients are those of `distill.token_loss(hidden . head', ...)`.

    Args:
        hidden_NH: float32 or bfloat16 (float64 in tests), in the head's dtype.
        head_VH: the output head, or the rows of this rank's shard.
        support_ids_NK: int64, the teacher's most likely valid ids, wherever their rows are. A repeated id counts as often as it is
            there.
        support_logprobs_NK: the teacher's log-probabilities of them; any offset per row cancels.

    Returns:
        loss_N, float32 whatever the inputs (float64 if they are); at least 0 up to rounding.
    """
    inputs = (hidden_NH, head_VH, support_ids_NK, support_logprobs_NK)
    return _SubsetDivergence.apply(*inputs, DIVERGENCES[divergence], shard)  # type: ignore[no-any-return]


class _SubsetDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        ids_NK: Tensor,
        teacher_logprobs_NK: Tensor,
        divergence: Divergence,
        shard: WholeVocabulary,
    ) -> Tensor:
        loss_N, slope_NK = divergence(support_logits(hidden_NH, head_VH, ids_NK, shard), teacher_logprobs_NK)
        ctx.save_for_backward(hidden_NH, head_VH, ids_NK, slope_NK)
        ctx.shard = shard
        return loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden_NH, head_VH, ids_NK, slope_NK = ctx.saved_tensors
        weight_NK = (slope_NK * grad_outputs[0].unsqueeze(1)).to(hidden_NH.dtype)
        needs_hidden, needs_head, *_ = ctx.needs_input_grad
        return (
            _hidden_gradient(head_VH, ids_NK, weight_NK, ctx.shard) if needs_hidden else None,
            _head_gradient(hidden_NH, head_VH, ids_NK, weight_NK, ctx.shard) if needs_head else None,
            None,
            None,
            None,
            None,
        )


def support_logits(hidden_NH: Tensor, head_VH: Tensor, ids_NK: Tensor, shard: WholeVocabulary = WHOLE) -> Tensor:
    """`hidden_NH . head_VH[ids_NK]`, in float32 or better. Collective over the ranks of a shard."""
    if not ids_NK.numel():
        return ids_NK.to(torch.promote_types(hidden_NH.dtype, torch.float32))
    if hidden_NH.is_cuda:
        return shard.total(_logits_of_gathered_rows(hidden_NH, head_VH, ids_NK, shard))
    if hidden_NH.dtype == torch.bfloat16:
        return shard.total(_logits_by_id(hidden_NH, head_VH, ids_NK, shard))
    own = _entries(ids_NK, shard)
    logits_E = _sampled_product(own.starts, own.ids_E, hidden_NH, head_VH)
    if own.here_NK is None:
        return logits_E.view_as(ids_NK)
    return shard.total(logits_E.new_zeros(ids_NK.shape).masked_scatter_(own.here_NK, logits_E))


def _logits_by_id(hidden_NH: Tensor, head_VH: Tensor, ids_NK: Tensor, shard: WholeVocabulary) -> Tensor:
    """In float32 from bfloat16, which the sampled product does not know: a row is converted once for all of its tokens."""
    logits_NK = torch.zeros(ids_NK.shape)
    hidden_NH = hidden_NH.float()
    for place in _places_of_ids(ids_NK, num_per_chunk(head_VH, head_VH.shape[1] * 4), shard):
        rows_uH = head_VH[place.ids_u].float()
        logits_NK.view(-1)[place.places] = _sampled_product(place.starts_u, place.tokens, rows_uH, hidden_NH)
    return logits_NK


def _logits_of_gathered_rows(hidden_NH: Tensor, head_VH: Tensor, ids_NK: Tensor, shard: WholeVocabulary) -> Tensor:
    """In float32 or better by a batched product, some tokens at a time. An id whose row is elsewhere gathers one for nothing."""
    rows_NK, here_NK = shard.find(ids_NK)
    if here_NK is not None:
        rows_NK = rows_NK.masked_fill(~here_NK, 0)
    dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    num_tokens = num_per_chunk(head_VH, ids_NK.shape[1] * head_VH.shape[1] * dtype.itemsize)
    pieces = zip(hidden_NH.split(num_tokens), rows_NK.split(num_tokens), strict=True)
    logits = [torch.bmm(head_VH[rows].to(dtype), hidden.to(dtype).unsqueeze(-1)).squeeze(-1) for hidden, rows in pieces]
    return torch.cat(logits) if here_NK is None else torch.cat(logits).masked_fill_(~here_NK, 0)


def _sampled_product(starts: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The entries of `left @ right.T` in compressed rows: row i at `columns[starts[i] : starts[i + 1]]`. Nothing is gathered."""
    shape = (len(left), len(right))
    pattern = torch.sparse_csr_tensor(starts, columns, left.new_zeros(len(columns)), shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0).values()


def _hidden_gradient(head_VH: Tensor, ids_NK: Tensor, weight_NK: Tensor, shard: WholeVocabulary) -> Tensor:
    own = _entries(ids_NK, shard)
    if not own.ids_E.numel():
        return head_VH.new_zeros(len(ids_NK), head_VH.shape[1])
    weight_E = weight_NK.reshape(-1) if own.here_NK is None else weight_NK.masked_select(own.here_NK)
    return F.embedding_bag(own.ids_E, head_VH, own.starts[:-1], per_sample_weights=weight_E, mode="sum")


def _head_gradient(hidden_NH: Tensor, head_VH: Tensor, ids_NK: Tensor, weight_NK: Tensor, shard: WholeVocabulary) -> Tensor:
    gradient_VH = _zeros_like(head_VH)
    for place in _places_of_ids(ids_NK, num_per_chunk(head_VH, head_VH.shape[1] * head_VH.element_size()), shard):
        weights = weight_NK.view(-1)[place.places]
        bags_u = place.starts_u[:-1]
        gradient_VH[place.ids_u] = F.embedding_bag(place.tokens, hidden_NH, bags_u, per_sample_weights=weights, mode="sum")
    return gradient_VH


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entries:
    """The entries of the supports whose rows are here, token by token; those of token i at `starts[i]` to `starts[i + 1]`."""

    ids_E: Tensor  # int64, rows of the head here
    starts: Tensor  # one more than tokens
    here_NK: Tensor | None  # bool, which they are; None for all


def _entries(ids_NK: Tensor, shard: WholeVocabulary) -> _Entries:
    rows_NK, here_NK = shard.find(ids_NK)
    if here_NK is None:
        starts = torch.arange(len(ids_NK) + 1, device=ids_NK.device) * ids_NK.shape[1]
        return _Entries(ids_E=rows_NK.reshape(-1), starts=starts, here_NK=None)
    return _Entries(ids_E=rows_NK.masked_select(here_NK), starts=F.pad(here_NK.sum(dim=1).cumsum(0), (1, 0)), here_NK=here_NK)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """Where some ids occur in the supports; id i at `starts_u[i]` to `starts_u[i + 1]` of the others. int32: half the memory."""

    ids_u: Tensor  # int64
    starts_u: Tensor  # one more than ids
    tokens: Tensor  # of N
    places: Tensor  # of N * K


def _places_of_ids(ids_NK: Tensor, num_ids: int, shard: WholeVocabulary) -> Iterator[_Places]:
    """All ids whose rows are here in ascending order, some at a time."""
    rows_NK, here_NK = shard.find(ids_NK)
    ids, places = rows_NK.reshape(-1).int().sort()
    if here_NK is not None:  # they are neighbours now
        here = here_NK.reshape(-1)[places]
        ids, places = ids[here], places[here]
    places = places.int()
    tokens = places // max(1, ids_NK.shape[1])
    ids_U, counts_U = torch.unique_consecutive(ids, return_counts=True)
    del ids
    starts = F.pad(counts_U.cumsum(0), (1, 0)).int()
    for first in range(0, len(ids_U), num_ids):
        starts_u = starts[first : first + num_ids + 1]
        inside = slice(int(starts_u[0]), int(starts_u[-1]))
        yield _Places(
            ids_u=ids_U[first : first + num_ids].long(),
            starts_u=starts_u - starts_u[0],
            tokens=tokens[inside],
            places=places[inside],
        )


def _zeros_like(head_VH: Tensor) -> Tensor:
    if head_VH.device.type != "cpu" or not head_VH.numel():
        return torch.zeros_like(head_VH)
    memory = mmap.mmap(-1, head_VH.numel() * head_VH.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=head_VH.dtype).view_as(head_VH)


def num_per_chunk(head_VH: Tensor, bytes_each: int) -> int:
    return max(1, (CUDA_CHUNK_BYTES if head_VH.is_cuda else CHUNK_BYTES) // max(1, bytes_each))
