"""Expert layers to test and time: torchtitan's way in bfloat16, and ours in FP8, from router scores to combined tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from standalone import find_polymath
from torch import Tensor

find_polymath()
from polymath.compiler.experts import RECIPES  # noqa: E402
from polymath.te_kernels.experts import Arithmetic, expert_layer  # noqa: E402
from polymath.te_kernels.permute import pad_groups, permute_fused, unpermute_fused  # noqa: E402
from polymath.te_kernels.recipe import Recipe  # noqa: E402


def recipe_of(name: str) -> Recipe:
    """The recipe of a format, as the compiler writes it."""
    engine_class, arguments = RECIPES[name]
    return Recipe(name=engine_class, arguments=arguments)


@dataclass
class Problem:
    """Tokens, where they go, and the weights of the experts."""

    x_TD: Tensor
    scores_TK: Tensor
    ids_TK: Tensor
    w1_EFD: Tensor
    w2_EDF: Tensor
    w3_EFD: Tensor

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.w1_EFD, self.w2_EDF, self.w3_EFD

    @property
    def rows_E(self) -> Tensor:
        return torch.bincount(self.ids_TK.reshape(-1), minlength=len(self.w1_EFD))

    def forget_gradients(self) -> None:
        for one in (self.x_TD, *self.weights):
            one.grad = None


def problem(
    *, tokens: int, experts: int, per_token: int, width: int, hidden: int, routing: str, dtype: torch.dtype, device: str
) -> Problem:
    """A layer at random. `routing` is "balanced", or "skewed": the n-th expert is visited in proportion to 1 / (n + 8)."""
    generator = torch.Generator(device="cpu").manual_seed(7)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, dtype).requires_grad_()

    if routing == "balanced":
        ids_TK = (torch.arange(tokens * per_token) % experts).view(tokens, per_token)
    else:
        likely_E = 1 / (torch.arange(experts) + 8.0)
        ids_TK = torch.multinomial(likely_E.expand(tokens, -1), per_token, generator=generator)
    return Problem(
        x_TD=normal(tokens, width),
        scores_TK=torch.rand(tokens, per_token, generator=generator).to(device),
        ids_TK=ids_TK.to(device),
        w1_EFD=normal(experts, hidden, width, scale=width**-0.5),
        w2_EDF=normal(experts, width, hidden, scale=hidden**-0.5),
        w3_EFD=normal(experts, hidden, width, scale=width**-0.5),
    )


def sorted_rows(one: Problem) -> tuple[Tensor, Tensor]:
    """Rows [R, D] sorted by expert, and where each came from among tokens and choices."""
    order_R = one.ids_TK.reshape(-1).argsort(stable=True)
    return one.x_TD[order_R // one.ids_TK.shape[1]], order_R


def combined(out_RD: Tensor, order_R: Tensor, one: Problem) -> Tensor:
    """[T, D]: rows weighted by their scores and added up, as torchtitan's dispatcher does."""
    scored_RD = (out_RD.float() * one.scores_TK.reshape(-1)[order_R, None]).to(out_RD.dtype)
    return torch.zeros_like(one.x_TD).index_add(0, order_R // one.ids_TK.shape[1], scored_RD)


def bf16_experts(x_RD: Tensor, one: Problem, offsets_E: Tensor) -> Tensor:
    """torchtitan's grouped products and SwiGLU in bfloat16."""
    gate_RF, up_RF = (
        torch._grouped_mm(x_RD.bfloat16(), w_EFD.bfloat16().transpose(-2, -1), offs=offsets_E) for w_EFD in (one.w1_EFD, one.w3_EFD)
    )
    hidden_RF = F.silu(gate_RF) * up_RF
    return torch._grouped_mm(hidden_RF, one.w2_EDF.bfloat16().transpose(-2, -1), offs=offsets_E).to(x_RD.dtype)


def bf16_layer(one: Problem) -> Tensor:
    """The whole layer in bfloat16."""
    x_RD, order_R = sorted_rows(one)
    return combined(bf16_experts(x_RD, one, one.rows_E.cumsum(0).to(torch.int32)), order_R, one)


def fp8_layer(arithmetic: Arithmetic, multiple: int, engine: Any | None) -> Callable[[Problem], Tensor]:
    """The whole layer in FP8; with `engine`, Transformer Engine permutes and pads in one pass."""

    def run(one: Problem) -> Tensor:
        if engine is not None:
            x_PD, padded_E, route = permute_fused(engine, one.x_TD, one.scores_TK, one.ids_TK, one.rows_E, multiple)
            return unpermute_fused(engine, expert_layer(x_PD, *one.weights, padded_E.tolist(), arithmetic), route)
        x_RD, order_R = sorted_rows(one)
        x_PD, padded_E, position_R = pad_groups(x_RD, one.rows_E, multiple)
        return combined(expert_layer(x_PD, *one.weights, padded_E.tolist(), arithmetic)[position_R], order_R, one)

    return run


def float64_layer(one: Problem) -> Tensor:
    """The whole layer in float64, expert by expert."""
    x_TD, (w1_EFD, w2_EDF, w3_EFD) = one.x_TD.double(), (weight.double() for weight in one.weights)
    out_TD = torch.zeros_like(x_TD)
    for expert in range(len(w1_EFD)):
        token_r, choice_r = (one.ids_TK == expert).nonzero(as_tuple=True)
        x_rD = x_TD[token_r]
        y_rD = (F.silu(x_rD @ w1_EFD[expert].T) * (x_rD @ w3_EFD[expert].T)) @ w2_EDF[expert].T
        out_TD = out_TD.index_add(0, token_r, y_rD * one.scores_TK.double()[token_r, choice_r, None])
    return out_TD
