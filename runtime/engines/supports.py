"""From what a service says of every position to a support: the k most likely tokens that the assistant may write.

Shapes: P positions, J tokens that were named, K tokens of the support, V vocabulary.
"""

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError

SLACK = 16  # tokens asked for beyond k and the invalid ones that are likely to stand before them


def require_support(k: int, valid: int, vocabulary: int, owner: object) -> None:
    """Refuse a support of more tokens than the assistant may write.

    Raises:
        UserError: exit code 3.
    """
    if k > valid:
        raise UserError(
            f"a support of {k} tokens was asked for, but only {valid} of the {vocabulary} ids of {owner} are ones that the "
            "assistant may write",
            exit_code=ExitCode.SPEC,
            fix=f"set `student.distill.loss.support.top_k` to {valid} or less",
        )


def keep_valid(ids_PJ: Tensor, logprobs_PJ: Tensor, invalid_V: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The first k valid tokens of each position, in the order in which they were named; None where a position has fewer.

    Args:
        ids_PJ: int64, most likely first, without the sampled token that a service adds.
        logprobs_PJ: float32.
        invalid_V: bool.
    """
    is_valid_PJ = ~invalid_V[ids_PJ]
    if ids_PJ.shape[1] < k or bool((is_valid_PJ.sum(dim=1) < k).any()):
        return None
    order_PK = torch.argsort((~is_valid_PJ).to(torch.int8), dim=1, stable=True)[:, :k]
    return ids_PJ.gather(1, order_PK), logprobs_PJ.gather(1, order_PK)


def invalid_mask(vocabulary: int, invalid_ids: frozenset[int], num_tokens: int) -> Tensor:
    """bool [V]: ids that no support may hold. Rows of the head from `num_tokens` on stand for no token."""
    mask_V = torch.zeros(vocabulary, dtype=torch.bool)
    mask_V[[one for one in sorted(invalid_ids) if one < vocabulary]] = True
    mask_V[num_tokens:] = True
    return mask_V
