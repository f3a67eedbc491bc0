"""One layer of SwiGLU experts in FP8: forward, gradient of the input and gradients of the weights.

Written once, for every arithmetic: `ReferenceArithmetic` says in plain PyTorch what the operations mean, `EngineArithmetic` does
them by Transformer Engine. Gate and up projection are one product, whose input is quantised once; every other operand is
quantised where it appears, from the number before FP8, and kept in FP8 for the backward pass.

| product | reads row-wise | reads column-wise |
|---|---|---|
| h = x w13 | x, w13 | |
| y = a w2, a = silu(gate) up | a, w2 | |
| da = dy w2 | dy | w2 |
| dw2 = dy a | | dy, a |
| dx = dh w13 | dh | w13 |
| dw13 = dh x | | dh, x |

Shapes: R rows of all experts sorted by expert, E experts, D model width, F expert width, H = 2 F gate and up together.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import Operand


def swiglu(h_RH: Tensor) -> Tensor:
    """[R, F] in the format of `h_RH`: silu(gate) * up, computed in float32 and rounded once."""
    gate_RF, up_RF = h_RH.float().chunk(2, dim=-1)
    return (F.silu(gate_RF) * up_RF).to(h_RH.dtype)


def swiglu_gradient(da_RF: Tensor, h_RH: Tensor) -> Tensor:
    """[R, H] in the format of `h_RH`: gradients of gate and up."""
    gate_RF, up_RF = h_RH.float().chunk(2, dim=-1)
    da_RF = da_RF.float()
    sigmoid_RF = gate_RF.sigmoid()
    silu_RF = gate_RF * sigmoid_RF
    dgate_RF = da_RF * up_RF * (sigmoid_RF + silu_RF * (1 - sigmoid_RF))
    return torch.cat([dgate_RF, da_RF * silu_RF], dim=-1).to(h_RH.dtype)


class Arithmetic(ABC):
    """The operations of a layer. A quantised operand is opaque: it holds what both of the products that read it need."""

    @abstractmethod
    def quantize(self, operand: Operand, matrix: Tensor, rows: Sequence[int]) -> Any:
        """A weight [E, N, K], or rows [R, K] that are sorted by expert, in FP8."""

    @abstractmethod
    def forward(self, x: Any, weight: Any, like: Tensor) -> Tensor:
        """[R, N] in the format of `like`."""

    @abstractmethod
    def input_gradient(self, gradient: Any, weight: Any, like: Tensor) -> Tensor:
        """[R, K] in the format of `like`."""

    @abstractmethod
    def weight_gradient(self, gradient: Any, x: Any, dtype: torch.dtype) -> Tensor:
        """[E, N, K]; zero where an expert has no rows."""

    @abstractmethod
    def pack(self, *operands: Any) -> tuple[list[Tensor], Any]:
        """What the backward pass reads of operands, as tensors that autograd may save, and how to put them together again.

        It reads column-wise only; the operands themselves may not be used again.
        """

    @abstractmethod
    def unpack(self, tensors: Sequence[Tensor], structure: Any) -> tuple[Any, ...]:
        """The operands that `pack` took apart, as far as it kept them."""

    def quantize_swiglu(self, h_RH: Tensor, rows: Sequence[int]) -> Any:
        """The hidden state in FP8. An arithmetic may do both in one pass, as long as the bytes are the same."""
        return self.quantize(Operand.HIDDEN, swiglu(h_RH), rows)

    def quantize_swiglu_gradient(self, da_RF: Tensor, h_RH: Tensor, rows: Sequence[int]) -> Any:
        """The gradient of gate and up in FP8."""
        return self.quantize(Operand.HIDDEN_GRADIENT, swiglu_gradient(da_RF, h_RH), rows)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, w3_EFD: Tensor, rows: Sequence[int], arithmetic: Arithmetic
    ) -> Tensor:
        x = arithmetic.quantize(Operand.INPUT, x_RD, rows)
        w13 = arithmetic.quantize(Operand.GATE_UP, torch.cat([w1_EFD, w3_EFD], dim=1), rows)
        h_RH = arithmetic.forward(x, w13, like=x_RD)
        a = arithmetic.quantize_swiglu(h_RH, rows)
        w2 = arithmetic.quantize(Operand.DOWN, w2_EDF, rows)
        y_RD = arithmetic.forward(a, w2, like=x_RD)
        packed, ctx.structure = arithmetic.pack(x, w13, a, w2)
        ctx.save_for_backward(h_RH, *packed)
        ctx.rows, ctx.arithmetic, ctx.weight_dtype = rows, arithmetic, w1_EFD.dtype
        return y_RD

    @staticmethod
    def backward(ctx: Any, dy_RD: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        arithmetic: Arithmetic = ctx.arithmetic
        h_RH, *packed = ctx.saved_tensors
        x, w13, a, w2 = arithmetic.unpack(packed, ctx.structure)
        dy = arithmetic.quantize(Operand.OUTPUT_GRADIENT, dy_RD.contiguous(), ctx.rows)
        da_RF = arithmetic.input_gradient(dy, w2, like=h_RH)
        dw2_EDF = arithmetic.weight_gradient(dy, a, ctx.weight_dtype)
        dh = arithmetic.quantize_swiglu_gradient(da_RF, h_RH, ctx.rows)
        dx_RD = arithmetic.input_gradient(dh, w13, like=h_RH)
        dw1_EFD, dw3_EFD = arithmetic.weight_gradient(dh, x, ctx.weight_dtype).chunk(2, dim=1)
        return dx_RD, dw1_EFD, dw2_EDF, dw3_EFD, None, None


def expert_layer(
    x_RD: Tensor, w1_EFD: Tensor, w2_EDF: Tensor, w3_EFD: Tensor, rows: Sequence[int], arithmetic: Arithmetic
) -> Tensor:
    """Every row through the expert it was routed to.

    Args:
        x_RD: float32 or bfloat16, sorted by expert; the output has its format.
        w1_EFD, w2_EDF, w3_EFD: gate, down and up projections in the format that they are trained in.
        rows: rows of each expert, in multiples of the recipe's alignment; they sum to R. An expert may have none.
    """
    return _Experts.apply(x_RD, w1_EFD, w2_EDF, w3_EFD, rows, arithmetic)
