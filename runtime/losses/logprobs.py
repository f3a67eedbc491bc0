"""What a policy says of the tokens that were written, from logits whose vocabulary may be split over ranks (`shard.py`).

Shapes: N selected positions, V vocabulary (or the ids of this rank's shard).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .shard import WHOLE, WholeVocabulary


def logprobs_and_entropy(logits_NV: Tensor, ids_N: Tensor, shard: WholeVocabulary = WHOLE) -> tuple[Tensor, Tensor]:
    """Log-probability of each id, and entropy, in nats.

    Args:
        logits_NV: any float dtype; computed in float32.
        ids_N: int64, of the whole vocabulary.

    Returns:
        logprob_N and entropy_N, float32, differentiable once.
    """
    return _LogprobsAndEntropy.apply(logits_NV, ids_N, shard)  # type: ignore[no-any-return]


class _LogprobsAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor, shard: WholeVocabulary) -> tuple[Tensor, Tensor]:
        logprobs_NV = shard.log_softmax(logits_NV.float())
        logprob_N1 = shard.gather(logprobs_NV, ids_N.unsqueeze(1))
        entropy_N = -shard.sum(logprobs_NV.exp().mul_(_finite(logprobs_NV)))
        ctx.save_for_backward(logprobs_NV, ids_N, logprob_N1, entropy_N)
        ctx.shard, ctx.dtype = shard, logits_NV.dtype
        ctx.set_materialize_grads(False)
        return logprob_N1.squeeze(1), entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor, None, None]:
        """In a logit of probability p: of the id's log-probability 1 - p at the id, -p elsewhere; of entropy H, -p (log p + H)."""
        logprobs_NV, ids_N, logprob_N1, entropy_N = ctx.saved_tensors
        of_logprob_N, of_entropy_N = grad_outputs
        p_NV = logprobs_NV.exp()
        slope_NV = torch.zeros_like(p_NV)
        if of_logprob_N is not None:
            slope_NV.sub_(p_NV)
            ctx.shard.fill_(slope_NV, ids_N.unsqueeze(1), 1 - logprob_N1.exp()).mul_(of_logprob_N.unsqueeze(1))
        if of_entropy_N is not None:
            slope_NV.sub_(p_NV.mul_(_finite(logprobs_NV) + entropy_N.unsqueeze(1)).mul_(of_entropy_N.unsqueeze(1)))
        return slope_NV.to(ctx.dtype), None, None


def _finite(logprobs_NV: Tensor) -> Tensor:
    """A token whose logit is -inf has probability 0 and adds 0 to the entropy; 0 * -inf would be NaN."""
    return logprobs_NV.masked_fill(logprobs_NV.isinf(), 0.0)
