"""What FP8 training computes, in plain PyTorch: the specification that Transformer Engine and our kernels are tested against.

A number x becomes FP8 as `q = cast(clamp(x * scale))`, and is read back as `q / scale`. The scale belongs to a block of numbers:

1. `amax` is the largest magnitude in the block. NaN does not count, as it does not for CUDA's `fmaxf`.
2. `scale = fp8_max / amax` in float32; 1 where `amax` is 0 or infinite, and the largest finite number where the quotient overflows.
3. Where the recipe wants powers of two, the mantissa of the scale is cleared: it is rounded down, so nothing overflows.
   The scales of MXFP8 are exponents, which know neither 0 nor infinity: 2^127 where `amax` is 0, 2^-127 where it is infinite.
4. The product is clamped to +-`fp8_max` and cast, to the nearest number and to the even one of two. NaN stays NaN.

A matrix that two products read along different dimensions is quantised twice, each time from the number before FP8: row-wise,
with blocks along its columns, and column-wise, with blocks along its rows. Products multiply the numbers read back, and add up in
float32.

What it does not do: be fast. Sources of the rule: Transformer Engine 2.20, common/recipe/recipe_common.cuh, and for MXFP8
`float_to_e8m0` and `exp2f_rcp` of common/util/ptx.cuh; the agreement of bytes with it is tested where there is a GPU (tests/gpu).

Shapes: R rows of all experts, sorted by expert and r of one of them, E experts, K width of the input, N width of the output,
H = 2 F gate and up together, C columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .experts import Arithmetic
from .history import AmaxHistory
from .recipe import Operand, Recipe, Scaling

FLOAT32_MAX = torch.finfo(torch.float32).max
MANTISSA_CLEARED = 0x7F800000  # sign is 0: scales are positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """A matrix in FP8."""

    data_RC: Tensor  # float8_e4m3fn or float8_e5m2
    scale_inverse: Tensor  # float32, one per block, [ceil(R / rows), ceil(C / columns)]
    block: tuple[int, int]  # rows and columns that share a scale


def scale_from(amax: Tensor, dtype: torch.dtype, *, power_of_two: bool, e8m0: bool = False) -> Tensor:
    """float32: what a block is multiplied with before the cast, by its largest magnitude."""
    scale = torch.finfo(dtype).max / amax
    if e8m0:
        return (scale.view(torch.int32) & MANTISSA_CLEARED).view(torch.float32).clamp(2.0**-127, 2.0**127)
    scale = torch.where((amax > 0) & amax.isfinite(), scale, torch.ones_like(scale))
    scale = torch.where(scale.isinf(), torch.full_like(scale, FLOAT32_MAX), scale)
    return (scale.view(torch.int32) & MANTISSA_CLEARED).view(torch.float32) if power_of_two else scale


def amax_of(x: Tensor, dim: Any = None) -> Tensor:
    """float32: the largest magnitude; 0 of nothing."""
    magnitude = x.float().abs().nan_to_num(nan=0.0, posinf=float("inf"))
    return magnitude.amax(dim=dim) if x.numel() else magnitude.new_zeros(())


def quantize(
    x_RC: Tensor,
    dtype: torch.dtype,
    block: tuple[int, int],
    *,
    power_of_two: bool,
    e8m0: bool = False,
    scale: Tensor | None = None,
) -> Quantized:
    """A matrix in FP8.

    Args:
        x_RC: float32, bfloat16 or float16.
        block: rows and columns that share a scale. Blocks at the end may be smaller.
        scale: a scalar that was decided before (delayed scaling); the block is then the whole matrix.
    """
    (rows, columns), (block_rows, block_columns) = x_RC.shape, block
    high, wide = -(-rows // block_rows), -(-columns // block_columns)
    padded = F.pad(x_RC.float(), (0, wide * block_columns - columns, 0, high * block_rows - rows))
    tiles = padded.view(high, block_rows, wide, block_columns)
    if scale is None:
        largest = amax_of(tiles, dim=(1, 3)) if tiles.numel() else tiles.new_zeros(high, wide)
        scale = scale_from(largest, dtype, power_of_two=power_of_two, e8m0=e8m0)
    scale = scale.expand(high, wide)
    largest_finite = torch.finfo(dtype).max
    scaled = (tiles * scale[:, None, :, None]).clamp(-largest_finite, largest_finite)
    data = scaled.view(high * block_rows, wide * block_columns)[:rows, :columns].to(dtype)
    return Quantized(data_RC=data, scale_inverse=1 / scale, block=block)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 [R, C]."""
    rows, columns = quantized.data_RC.shape
    scale_inverse = quantized.scale_inverse
    for dim, (block, size) in enumerate(zip(quantized.block, (rows, columns), strict=True)):
        scale_inverse = scale_inverse.repeat_interleave(block, dim=dim).narrow(dim, 0, size)
    return quantized.data_RC.float() * scale_inverse


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedOperand:
    """One operand of all experts: a matrix each, quantised for both of the products that read it."""

    rowwise: tuple[Quantized, ...]
    columnwise: tuple[Quantized, ...]


class ReferenceArithmetic(Arithmetic):
    """The operations of an expert layer in plain PyTorch."""

    def __init__(self, recipe: Recipe, history: AmaxHistory | None = None) -> None:
        self.recipe = recipe
        self.history = history

    def quantize(self, operand: Operand, matrix: Tensor, rows: Sequence[int]) -> GroupedOperand:
        scaling = self.recipe.scaling(operand)
        experts = matrix.unbind() if operand.is_weight else matrix.split(list(rows))
        pairs = [self._quantize_one(operand, scaling, number, one) for number, one in enumerate(experts)]
        rowwise, columnwise = zip(*pairs, strict=True)
        return GroupedOperand(rowwise=rowwise, columnwise=columnwise)

    def _quantize_one(self, operand: Operand, scaling: Scaling, expert: int, x_RC: Tensor) -> tuple[Quantized, Quantized]:
        if scaling.block is not None:
            along, across = scaling.block
            rowwise, columnwise = (
                quantize(x_RC, scaling.dtype, block, power_of_two=scaling.power_of_two, e8m0=scaling.e8m0)
                for block in ((across, along), (along, across))
            )
            return rowwise, columnwise
        scale = None
        if scaling.from_history:
            assert self.history is not None
            amax = self.history.amax(operand, expert)
            amax.copy_(torch.maximum(amax, amax_of(x_RC)))
            scale = self.history.scale(operand, expert)
        whole = (max(1, x_RC.shape[0]), max(1, x_RC.shape[1]))
        both = quantize(x_RC, scaling.dtype, whole, power_of_two=scaling.power_of_two, scale=scale)
        return both, both

    def forward(self, x: GroupedOperand, weight: GroupedOperand, like: Tensor) -> Tensor:
        """[R, N]: every row times its expert's weight."""
        pairs = zip(x.rowwise, weight.rowwise, strict=True)
        return torch.cat([dequantize(x_rK) @ dequantize(w_NK).T for x_rK, w_NK in pairs]).to(like.dtype)

    def input_gradient(self, gradient: GroupedOperand, weight: GroupedOperand, like: Tensor) -> Tensor:
        """[R, K]."""
        pairs = zip(gradient.rowwise, weight.columnwise, strict=True)
        return torch.cat([dequantize(g_rN) @ dequantize(w_NK) for g_rN, w_NK in pairs]).to(like.dtype)

    def weight_gradient(self, gradient: GroupedOperand, x: GroupedOperand, dtype: torch.dtype) -> Tensor:
        """[E, N, K]; zero where an expert has no rows."""
        pairs = zip(gradient.columnwise, x.columnwise, strict=True)
        return torch.stack([dequantize(g_rN).T @ dequantize(x_rK) for g_rN, x_rK in pairs]).to(dtype)

    def pack(self, *operands: GroupedOperand) -> tuple[list[Tensor], Any]:
        parts = [one for operand in operands for one in operand.columnwise]
        tensors = [tensor for one in parts for tensor in (one.data_RC, one.scale_inverse)]
        return tensors, [[one.block for one in operand.columnwise] for operand in operands]

    def unpack(self, tensors: Sequence[Tensor], structure: Any) -> tuple[GroupedOperand, ...]:
        left = iter(tensors)
        return tuple(
            GroupedOperand(
                rowwise=(),
                columnwise=tuple(Quantized(data_RC=next(left), scale_inverse=next(left), block=block) for block in blocks),
            )
            for blocks in structure
        )
