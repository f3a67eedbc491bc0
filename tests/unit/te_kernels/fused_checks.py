"""Compares what the kernels wrote with the reference. Also used on a GPU (tests/gpu)."""

from typing import Any

import torch
from polymath.te_kernels.reference import quantize
from torch import Tensor

CASES = ((16,), (128, 0, 48), (16, 272, 0, 144))


def sample(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Numbers whose rows and columns differ in size by many powers of two."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    sizes = [torch.randint(-9, 9, (count, 1), generator=generator).float().exp2() for count in (rows, columns)]
    return (torch.randn(rows, columns, generator=generator) * sizes[0] * sizes[1].T).to(dtype)


def same_bytes(blocks: Any, expected_RC: Tensor) -> float:
    """The share of bytes and scales that differ from the reference's, the larger of row-wise and column-wise."""
    differing, compared = torch.zeros(2), torch.zeros(2)
    for parts, x_rC in zip(blocks.of_experts(), expected_RC.split(list(blocks.rows)), strict=True):
        row_data, row_scales, column_data, column_scales = (part.cpu() for part in parts)
        for number, (block, data, scales) in enumerate(
            (((1, 128), row_data, row_scales.T), ((128, 1), column_data.T, column_scales))
        ):
            one = quantize(x_rC.cpu(), torch.float8_e4m3fn, block, power_of_two=True)
            wrong = data.contiguous().view(torch.uint8) != one.data_RC.contiguous().view(torch.uint8)
            nan = data.float().isnan() & one.data_RC.float().isnan()
            differing[number] += (wrong & ~nan).sum() + (scales != one.scale_inverse).sum()
            compared[number] += wrong.numel() + scales.numel()
    return (differing / compared).max().item()
