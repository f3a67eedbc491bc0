"""The clipped policy-gradient loss of one token (teachers' GRPO phases).

What it does: the surrogate of PPO with a clip range that is wider above than below, with the log-probabilities that the rollout
engine recorded, plus an optional KL to reference weights and an optional entropy bonus.
What it does not do: normalise rewards (`advantages.py`), drop groups or weight tokens (`stages/grpo.py`).

Sources: Shao et al. 2024 (DeepSeekMath), equation 3, for the surrogate and its KL estimator; Yu et al. 2025 (DAPO), section 3.1,
for the asymmetric clip.

Shapes: N selected positions, V vocabulary (or the ids of this rank's shard).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .logprobs import logprobs_and_entropy
from .shard import WHOLE, WholeVocabulary

LARGEST_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside any clip range, and still finite in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoTerms:
    """The loss of each token and what went into it. Only `loss_N` carries a gradient."""

    loss_N: Tensor
    ratio_N: Tensor  # new probability over rollout probability
    clipped_N: Tensor  # 1.0 where the clip bound and the token has no policy gradient
    reference_kl_N: Tensor  # estimate of KL(policy || reference), at least 0; zeros without a reference
    entropy_N: Tensor  # of the policy, in nats


def token_loss(
    logits_NV: Tensor,
    labels_N: Tensor,
    rollout_logprobs_N: Tensor,
    advantage_N: Tensor,
    *,
    clip: tuple[float, float],
    reference_logprobs_N: Tensor | None = None,
    reference_kl: float = 0.0,
    entropy: float = 0.0,
    shard: WholeVocabulary = WHOLE,
) -> GrpoTerms:
    """The loss `-min(r A, clip(r, 1 - low, 1 + high) A) + reference_kl KL - entropy H` of each token.

    Args:
        logits_NV: any float dtype; computed in float32.
        labels_N: int64, the token that was sampled.
        rollout_logprobs_N: its log-probability when it was sampled, at temperature 1 with no truncation.
        advantage_N: the advantage of the token's sample.
        clip: how far the ratio may fall below and rise above 1.
        reference_logprobs_N: log-probability under the reference; needed where `reference_kl` is not 0.
        reference_kl: weight of the KL term.
        entropy: weight of the entropy bonus.
    """
    logprob_N, entropy_N = logprobs_and_entropy(logits_NV, labels_N, shard)

    ratio_N = (logprob_N - rollout_logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    low, high = clip
    free_N = ratio_N * advantage_N
    bound_N = ratio_N.clamp(1 - low, 1 + high) * advantage_N
    loss_N = -torch.minimum(free_N, bound_N)

    kl_N = torch.zeros_like(logprob_N)
    if reference_logprobs_N is not None:
        # r - 1 - log r with r = reference / policy: unbiased, never negative (DeepSeekMath, equation 4).
        # Bounded above alone: that far below 0 the exponential is 0, and the rest must go on pulling the policy back.
        log_ratio_N = (reference_logprobs_N - logprob_N).clamp(max=LARGEST_LOG_RATIO)
        kl_N = log_ratio_N.expm1() - log_ratio_N
        loss_N = loss_N + reference_kl * kl_N

    if entropy:
        loss_N = loss_N - entropy * entropy_N

    return GrpoTerms(
        loss_N=loss_N,
        ratio_N=ratio_N.detach(),
        clipped_N=(bound_N < free_N).float(),
        reference_kl_N=kl_N.detach(),
        entropy_N=entropy_N.detach(),
    )
