"""Cross-entropy of what the model wrote (stage 1, and the SFT phases of teachers).

Source: Agents-A1 (arXiv 2606.30616), training recipe: loss on response tokens only. Which tokens those are is decided upstream;
here every position counts.

Shapes: N selected positions, V vocabulary (or the ids of this rank's shard).
"""

import torch.nn.functional as F
from torch import Tensor

from .logprobs import logprobs_and_entropy
from .shard import WHOLE, WholeVocabulary


def token_loss(logits_NV: Tensor, labels_N: Tensor, shard: WholeVocabulary = WHOLE) -> Tensor:
    """Negative log-probability of each label, in nats.

    Args:
        logits_NV: any float dtype; computed in float32.
        labels_N: int64, the token that was written at the next position.

    Returns:
        loss_N, float32.
    """
    if shard is WHOLE:  # torch has one kernel for it
        return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
    return -logprobs_and_entropy(logits_NV, labels_N, shard)[0]
