"""Stands in for Transformer Engine on a CPU: its functions as their sources describe them, computed by the reference.

It shows that `EngineArithmetic` calls them in the right order, with the right layouts and splits; that the real ones do what their
sources say is shown on a GPU.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from polymath.te_kernels.recipe import Recipe, TransformerEngine
from polymath.te_kernels.reference import Quantized, amax_of, dequantize, quantize
from torch import Tensor

FP8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass
class Quantizer:
    """Any of the four, by its arguments."""

    dtype: torch.dtype
    block: tuple[int, int] | None
    power_of_two: bool
    e8m0: bool = False
    scale: Tensor | None = None
    amax: Tensor | None = None
    internal: bool = False
    optimize_for_gemm: bool = False

    def __call__(self, x_RC: Tensor) -> "Storage":
        assert self.internal
        if self.block is None:
            whole = (max(1, x_RC.shape[0]), max(1, x_RC.shape[1]))
            if self.amax is not None:
                self.amax.copy_(torch.maximum(self.amax, amax_of(x_RC)))
            both = quantize(x_RC, self.dtype, whole, power_of_two=self.power_of_two, scale=self.scale)
            return Storage(both, both)
        along, across = self.block
        rowwise, columnwise = (
            quantize(x_RC, self.dtype, block, power_of_two=self.power_of_two, e8m0=self.e8m0)
            for block in ((across, along), (along, across))
        )
        return Storage(rowwise, columnwise)


@dataclass
class Storage:
    rowwise: Quantized | None
    columnwise: Quantized | None

    def _any(self) -> Tensor:
        kept = self.rowwise or self.columnwise
        assert kept is not None, "the storage was taken apart"
        return kept.data_RC

    def size(self, dim: int) -> int:
        return self._any().shape[dim]

    @property
    def device(self) -> torch.device:
        return self._any().device

    def update_usage(self, *, rowwise_usage: bool, columnwise_usage: bool) -> None:
        assert columnwise_usage and not rowwise_usage
        self.rowwise = None


def block_storage(
    *,
    rowwise_data: Tensor,
    rowwise_scale_inv: Tensor,
    columnwise_data: Tensor,
    columnwise_scale_inv: Tensor,
    fp8_dtype: str,
    quantizer: Quantizer,
    is_2D_scaled: bool,
    fake_dtype: torch.dtype,
) -> Storage:
    """Rows' scales lie with their blocks first, and what is column-wise lies transposed."""
    assert not is_2D_scaled and quantizer.block == (128, 1)
    dtype = FP8[fp8_dtype]
    return Storage(
        Quantized(data_RC=rowwise_data.view(dtype), scale_inverse=rowwise_scale_inv.T, block=(1, 128)),
        Quantized(data_RC=columnwise_data.view(dtype).T, scale_inverse=columnwise_scale_inv, block=(128, 1)),
    )


def prepare_for_saving(*storages: Storage) -> tuple[list[Tensor], list[Any]]:
    tensors, blocks = [], []
    for one in storages:
        assert one.columnwise is not None
        tensors += [one.columnwise.data_RC, one.columnwise.scale_inverse]
        blocks.append(one.columnwise.block)
        one.columnwise = None  # as Transformer Engine's storages let go of their tensors
    return tensors, blocks


def restore_from_saved(blocks: list[Any], tensors: list[Tensor]) -> list[Storage]:
    left = iter(tensors)
    return [Storage(None, Quantized(data_RC=next(left), scale_inverse=next(left), block=block)) for block in blocks]


def split_quantize(x_RC: Tensor, splits: Sequence[int], quantizers: Sequence[Quantizer]) -> list[Storage]:
    return [quantizer(part) for part, quantizer in zip(x_RC.split(list(splits)), quantizers, strict=True)]


def general_grouped_gemm(
    a: list[Storage],
    b: list[Storage],
    out: list[Tensor],
    quantization_params: list[None],
    out_dtype: torch.dtype,
    layout: str = "TN",
    m_splits: list[int] | None = None,
    grad: bool = False,
    use_split_accumulator: bool = False,
    single_output: bool = False,
) -> None:
    """cuBLAS is column-major: out = op(b) op(a), where T of `a` and N of `b` read row-wise."""
    assert len(quantization_params) == len(a) == len(b) == len(m_splits or [])
    assert out_dtype == out[0].dtype
    targets = out[0].split(m_splits) if single_output else out
    for one, other, target in zip(a, b, targets, strict=True):
        left = dequantize(_of(other, "columnwise" if layout[1] == "T" else "rowwise"))
        right = dequantize(_of(one, "rowwise" if layout[0] == "T" else "columnwise"))
        target.copy_((left.T if layout[1] == "T" else left) @ (right.T if layout[0] == "T" else right))


def _of(storage: Storage, usage: str) -> Quantized:
    found = getattr(storage, usage)
    assert found is not None, f"{usage} data is not there"
    return found


def engine(recipe: Recipe) -> TransformerEngine:
    """Transformer Engine as `load` would give it."""

    def block_quantizer(
        fp8_dtype: str, *, rowwise: bool, columnwise: bool, force_pow_2_scales: bool, block_scaling_dim: int
    ) -> Quantizer:
        assert rowwise and columnwise
        return Quantizer(FP8[fp8_dtype], (128, 1 if block_scaling_dim == 1 else 128), force_pow_2_scales)

    def current_quantizer(
        fp8_dtype: str, device: torch.device, *, rowwise: bool, columnwise: bool, force_pow_2_scales: bool
    ) -> Quantizer:
        return Quantizer(FP8[fp8_dtype], None, force_pow_2_scales)

    def delayed_quantizer(scale: Tensor, amax: Tensor, fp8_dtype: str, *, rowwise: bool, columnwise: bool) -> Quantizer:
        assert amax.shape == (1,)
        return Quantizer(FP8[fp8_dtype], None, False, scale=scale, amax=amax)

    def mx_quantizer(fp8_dtype: str, *, rowwise: bool, columnwise: bool) -> Quantizer:
        return Quantizer(FP8[fp8_dtype], (32, 1), True, e8m0=True)

    pytorch = SimpleNamespace(
        DType=SimpleNamespace(kFloat8E4M3="e4m3", kFloat8E5M2="e5m2"),
        Float8BlockQuantizer=block_quantizer,
        Float8BlockwiseQTensorStorage=block_storage,
        Float8CurrentScalingQuantizer=current_quantizer,
        Float8Quantizer=delayed_quantizer,
        MXFP8Quantizer=mx_quantizer,
        autocast=lambda enabled, recipe: nullcontext(),
        prepare_for_saving=prepare_for_saving,
        restore_from_saved=restore_from_saved,
    )
    gemm = SimpleNamespace(general_grouped_gemm=general_grouped_gemm)
    extension = SimpleNamespace(split_quantize=split_quantize)
    return TransformerEngine(pytorch=pytorch, gemm=gemm, extension=extension, recipe=None)  # type: ignore[arg-type]
