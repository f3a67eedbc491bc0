"""SwiGLU, its gradient and blockwise quantisation in one pass over the rows of all experts (Triton).

By bytes, an expert layer at width 512 is bound by what happens between its products (docs/fp8.md): the gradient of SwiGLU written
in bfloat16 and quantised afterwards moves four times what one pass does. Each kernel reads a tile once, and writes it in FP8 both
row-wise and column-wise, in the layout that Transformer Engine's products read; one launch serves all experts.

The plain-PyTorch functions of the same purpose are `reference.quantize`, `experts.swiglu` and `experts.swiglu_gradient`; bytes and
scales are theirs (tests/unit/te_kernels/test_fused.py runs the kernels by Triton's interpreter, tests/gpu on a GPU).

What it does not do: quantise weights, or other recipes than e4m3 by blocks of 1 x 128 with power-of-two scales.

Shapes: R rows of all experts, E experts, C columns of what is quantised, F expert width, H = 2 F gate and up together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
WARPS = 16  # 32 numbers of a tile a thread; by ptxas, 4 and 8 warps spill several times as many registers (sm_90)
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedBlocks:
    """Rows of all experts in FP8, each expert's part contiguous; rows per expert are multiples of 16.

    Of an expert with r rows that begin at row s, in tile t of 128 rows: `row_data[s:s + r]` and `row_scale_inverse[C / 128, r]`;
    `column_data[C, r]` and `column_scale_inverse[ceil(r / 128), C]`, all after what earlier experts take.
    """

    rows: tuple[int, ...]
    columns: int
    row_data: Tensor  # e4m3 [R, C]
    row_scale_inverse: Tensor  # float32, flat
    column_data: Tensor  # e4m3, flat
    column_scale_inverse: Tensor  # float32, flat

    def of_experts(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each expert `row_data`, `row_scale_inverse`, `column_data` and `column_scale_inverse`: views."""
        found, start, tile = [], 0, 0
        for rows in self.rows:
            tiles = -(-rows // BLOCK)
            scales = self.columns // BLOCK
            found.append(
                (
                    self.row_data[start : start + rows],
                    self.row_scale_inverse[start * scales : (start + rows) * scales].view(scales, rows),
                    self.column_data[start * self.columns : (start + rows) * self.columns].view(self.columns, rows),
                    self.column_scale_inverse[tile * self.columns : (tile + tiles) * self.columns].view(tiles, self.columns),
                )
            )
            start, tile = start + rows, tile + tiles
        return found


def quantize_rows(x_RC: Tensor, rows: Sequence[int]) -> GroupedBlocks:
    """As `reference.quantize` of each expert's rows, row-wise and column-wise. C is a multiple of 128."""
    return _launch(_quantize_rows, (x_RC,), rows, columns=x_RC.shape[1], like=x_RC)


def quantize_swiglu(h_RH: Tensor, rows: Sequence[int]) -> GroupedBlocks:
    """As `quantize_rows(experts.swiglu(h_RH), rows)`. F is a multiple of 128."""
    return _launch(_quantize_swiglu, (h_RH,), rows, columns=h_RH.shape[1] // 2, like=h_RH)


def quantize_swiglu_gradient(da_RF: Tensor, h_RH: Tensor, rows: Sequence[int]) -> GroupedBlocks:
    """As `quantize_rows(experts.swiglu_gradient(da_RF, h_RH), rows)`. F is a multiple of 128."""
    return _launch(_quantize_swiglu_gradient, (da_RF, h_RH), rows, columns=h_RH.shape[1], like=h_RH)


def _launch(
    kernel: "triton.JITFunction", inputs: tuple[Tensor, ...], rows: Sequence[int], *, columns: int, like: Tensor
) -> GroupedBlocks:
    assert columns % BLOCK == 0, f"{columns} columns are no multiple of {BLOCK}"
    tiles = [(start, rows_e, first) for start, rows_e in _starts(rows) for first in range(0, rows_e, BLOCK)]
    total, device = sum(rows), like.device
    blocks = GroupedBlocks(
        rows=tuple(rows),
        columns=columns,
        row_data=torch.empty(total, columns, dtype=E4M3, device=device),
        row_scale_inverse=torch.empty(total * columns // BLOCK, dtype=torch.float32, device=device),
        column_data=torch.empty(total * columns, dtype=E4M3, device=device),
        column_scale_inverse=torch.empty(len(tiles) * columns, dtype=torch.float32, device=device),
    )
    if tiles:
        table = torch.tensor(tiles, dtype=torch.int32).to(device, non_blocking=True)
        row_bytes, column_bytes = blocks.row_data.view(torch.uint8), blocks.column_data.view(torch.uint8)
        outputs = (row_bytes, blocks.row_scale_inverse, column_bytes, blocks.column_scale_inverse)
        kernel[(len(tiles), columns // BLOCK)](*inputs, *outputs, table, columns, BLOCK, num_warps=WARPS)
    return blocks


def _starts(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Where each expert's rows begin, and how many there are."""
    found, start = [], 0
    for rows_e in rows:
        found.append((start, rows_e))
        start += rows_e
    return found


@triton.jit
def _quantize_rows(x, row_data, row_scales, column_data, column_scales, table, columns, BLOCK: tl.constexpr):
    start, rows, first = _tile(table)
    row = first + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = (row < rows)[:, None]
    value = tl.load(x + (start + row).to(tl.int64)[:, None] * columns + column[None, :], there, 0.0).to(tl.float32)
    _store(value, row_data, row_scales, column_data, column_scales, start, rows, first, columns, BLOCK)


@triton.jit
def _quantize_swiglu(h, row_data, row_scales, column_data, column_scales, table, columns, BLOCK: tl.constexpr):
    start, rows, first = _tile(table)
    row = first + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = (row < rows)[:, None]
    at = h + (start + row).to(tl.int64)[:, None] * (2 * columns) + column[None, :]
    gate = tl.load(at, there, 0.0).to(tl.float32)
    up = tl.load(at + columns, there, 0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    _store(_as_stored(value, h), row_data, row_scales, column_data, column_scales, start, rows, first, columns, BLOCK)


@triton.jit
def _quantize_swiglu_gradient(da, h, row_data, row_scales, column_data, column_scales, table, columns, BLOCK: tl.constexpr):
    start, rows, first = _tile(table)
    row = first + tl.arange(0, BLOCK)
    half = columns // 2
    is_up = tl.program_id(1) * BLOCK >= half
    column = tl.program_id(1) * BLOCK - tl.where(is_up, half, 0) + tl.arange(0, BLOCK)
    there = (row < rows)[:, None]
    row64 = (start + row).to(tl.int64)[:, None]
    gradient = tl.load(da + row64 * half + column[None, :], there, 0.0).to(tl.float32)
    gate = tl.load(h + row64 * columns + column[None, :], there, 0.0).to(tl.float32)
    up = tl.load(h + row64 * columns + half + column[None, :], there, 0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    value = tl.where(is_up, gradient * silu, gradient * up * (sigmoid + silu * (1.0 - sigmoid)))
    _store(_as_stored(value, h), row_data, row_scales, column_data, column_scales, start, rows, first, columns, BLOCK)


@triton.jit
def _tile(table):
    """The first row and the rows of this tile's expert, and the tile's first row in it."""
    entry = table + 3 * tl.program_id(0)
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)


@triton.jit
def _store(value, row_data, row_scales, column_data, column_scales, start, rows, first, columns, BLOCK: tl.constexpr):
    """Quantise a tile of float32 along its rows and along its columns; rows past the expert's last are zero, and not written."""
    row = first + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    magnitude = tl.abs(value)
    magnitude = tl.where(magnitude == magnitude, magnitude, 0.0)  # NaN does not count

    scale = _scale(tl.max(magnitude, 1))
    at = (start + row).to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(row_data + at, _e4m3(value * scale[:, None]), there[:, None])
    scales_start = start.to(tl.int64) * (columns // BLOCK)
    tl.store(row_scales + scales_start + tl.program_id(1) * rows + row, tl.div_rn(1.0, scale), there)

    scale = _scale(tl.max(magnitude, 0))
    at = start.to(tl.int64) * columns + column.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(column_data + at, _e4m3(tl.trans(value * scale[None, :])), there[None, :])
    tl.store(column_scales + tl.program_id(0).to(tl.int64) * columns + column, tl.div_rn(1.0, scale))


@triton.jit
def _scale(amax):
    """The largest power of two that leaves `amax` below 448, as `reference.scale_from`."""
    usable = (amax > 0) & (amax < float("inf"))
    scale = tl.div_rn(448.0, tl.where(usable, amax, 1.0))
    scale = tl.where(scale < float("inf"), scale, 3.4028234663852886e38)
    bits = scale.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.where(usable, bits.to(tl.float32, bitcast=True), 1.0)


@triton.jit
def _e4m3(scaled):
    """The byte: clamped, rounded to the nearest number of the format, and to the even one of two; NaN stays NaN.

    Written with integers, and not as a cast, so that the interpreter computes what a GPU does.
    """
    bits = tl.abs(scaled).to(tl.int32, bitcast=True)
    clamped = tl.minimum(bits, 0x43E00000)  # of 448: magnitudes are ordered as their bits
    normal = ((clamped + 0x7FFFF + ((clamped >> 20) & 1)) >> 20) - (120 << 3)  # 3 bits of mantissa; the exponents differ by 120
    in_steps = clamped.to(tl.float32, bitcast=True) * 512.0 + 12582912.0  # subnormals lie 2^-9 apart; near 1.5 * 2^23, ones do
    subnormal = in_steps.to(tl.int32, bitcast=True) & 0xFF
    byte = tl.where(clamped < 0x3C800000, subnormal, normal)  # of 2^-6
    byte = tl.where(bits > 0x7F800000, 0x7F, byte)  # NaN
    sign = (scaled.to(tl.int32, bitcast=True) >> 31) & 1
    return (byte | (sign << 7)).to(tl.uint8)


@triton.jit
def _as_stored(value, like):
    """float32, rounded to the format of `like` as if it had been stored there."""
    if like.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        value = tl.where(value == value, rounded.to(tl.float32, bitcast=True), value)
    return value
