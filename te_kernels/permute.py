"""Groups of rows padded to what FP8 products want, and the padding taken out again.

Shapes: R rows sorted by expert, P rows with padding, E experts, T tokens, K experts a token visits, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import TransformerEngine


def pad_groups(x_RD: Tensor, rows_E: Tensor, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Add rows of zeros to every group until it is a multiple; an empty group stays empty.

    Args:
        rows_E: int64, rows of each group; they sum to R.

    Returns:
        The padded rows [P, D], the rows of each padded group [E], and where each row went, int64 [R]: `padded[position_R]` takes
        the padding out again.
    """
    padded_E = (rows_E + multiple - 1) // multiple * multiple
    added_E = (padded_E - rows_E).cumsum(0) - (padded_E - rows_E)  # rows of padding before each group
    position_R = torch.arange(len(x_RD), device=x_RD.device) + added_E.repeat_interleave(rows_E, output_size=len(x_RD))
    padded_PD = x_RD.new_zeros(int(padded_E.sum()), x_RD.shape[1])
    return padded_PD.index_copy_(0, position_R, x_RD), padded_E, position_R


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedRoute:
    """What Transformer Engine's unpermutation needs to know of its permutation."""

    row_id_map: Tensor
    probabilities_TE: Tensor
    pad_offsets_E: Tensor | None
    shape: torch.Size


def permute_fused(
    engine: TransformerEngine, x_TD: Tensor, scores_TK: Tensor, expert_ids_TK: Tensor, rows_E: Tensor, multiple: int
) -> tuple[Tensor, Tensor, FusedRoute]:
    """Sort tokens by expert and pad the groups in one pass of Transformer Engine.

    Returns:
        The padded rows [P, D], the rows of each padded group [E], and the way back.
    """
    experts = len(rows_E)
    probabilities_TE = scores_TK.new_zeros(len(x_TD), experts).scatter(1, expert_ids_TK, scores_TK)
    routing_map_TE = torch.zeros_like(probabilities_TE, dtype=torch.int32).scatter(1, expert_ids_TK, 1)
    padded_PD, _, row_id_map, pad_offsets_E, padded_E = engine.pytorch.moe_permute_and_pad_with_probs(
        x_TD, probabilities_TE, routing_map_TE, rows_E, multiple
    )
    route = FusedRoute(row_id_map=row_id_map, probabilities_TE=probabilities_TE, pad_offsets_E=pad_offsets_E, shape=x_TD.shape)
    return padded_PD, padded_E, route


def unpermute_fused(engine: TransformerEngine, out_PD: Tensor, route: FusedRoute) -> Tensor:
    """[T, D]: each token's expert outputs, weighted by its scores and added up; padding is never read."""
    return engine.pytorch.moe_unpermute(
        out_PD,
        route.row_id_map,
        merging_probs=route.probabilities_TE,
        restore_shape=route.shape,
        map_type="mask",
        pad_offsets=route.pad_offsets_E,
    )
