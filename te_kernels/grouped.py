"""The operations of an expert layer by Transformer Engine: its quantisation and its grouped products.

Transformer Engine's own `GroupedLinear` keeps one parameter per expert. torchtitan's stacked weights, which sharding and
checkpoints depend on, are therefore quantised and multiplied here with the functions that `GroupedLinear` calls; they stay in
float32 or bfloat16 and are quantised where they are used.

What it does not do: run on a CPU. Every name and parameter that is used here is compared with the published package
(tests/unit/te_kernels/test_contract.py), and the numbers with the reference where there is a GPU (tests/gpu).
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .experts import Arithmetic
from .history import AmaxHistory
from .recipe import BLOCK, Operand, Recipe, TransformerEngine, load


def engine_arithmetic(recipe: Recipe, history: AmaxHistory | None) -> "EngineArithmetic":
    """The fastest arithmetic that this machine has for a recipe.

    Raises:
        TransformerEngineMissing: it has none.
    """
    has_triton = importlib.util.find_spec("triton") is not None  # comes with every torch for CUDA
    fuses = recipe.name == "Float8BlockScaling" and recipe.arguments["fp8_format"] == "E4M3" and has_triton
    return (FusedArithmetic if fuses else EngineArithmetic)(recipe, load(recipe), history)


class EngineArithmetic(Arithmetic):
    """The operations of an expert layer on a GPU. A quantised operand is a list of Transformer Engine's storages, one an expert."""

    def __init__(self, recipe: Recipe, engine: TransformerEngine, history: AmaxHistory | None = None) -> None:
        self.recipe = recipe
        self.engine = engine
        self.history = history

    def quantize(self, operand: Operand, matrix: Tensor, rows: Sequence[int]) -> list[Any]:
        splits = [matrix.shape[1]] * matrix.shape[0] if operand.is_weight else list(rows)
        flat = matrix.reshape(-1, matrix.shape[-1])
        quantizers = [self._quantizer(operand, expert, flat.device) for expert in range(len(splits))]
        with self.engine.pytorch.autocast(enabled=True, recipe=self.engine.recipe):
            return self.engine.extension.split_quantize(flat, splits, quantizers)

    def _quantizer(self, operand: Operand, expert: int, device: torch.device) -> Any:
        scaling, pytorch = self.recipe.scaling(operand), self.engine.pytorch
        fp8_dtype = pytorch.DType.kFloat8E5M2 if scaling.dtype == torch.float8_e5m2 else pytorch.DType.kFloat8E4M3
        if scaling.from_history:
            assert self.history is not None
            scale, amax = self.history.scale(operand, expert), self.history.amax(operand, expert)
            quantizer = pytorch.Float8Quantizer(scale, amax, fp8_dtype, rowwise=True, columnwise=True)
        elif scaling.block is None:
            quantizer = pytorch.Float8CurrentScalingQuantizer(
                fp8_dtype, device, rowwise=True, columnwise=True, force_pow_2_scales=scaling.power_of_two
            )
        elif self.recipe.name == "MXFP8BlockScaling":
            quantizer = pytorch.MXFP8Quantizer(fp8_dtype, rowwise=True, columnwise=True)
        else:
            quantizer = pytorch.Float8BlockQuantizer(
                fp8_dtype,
                rowwise=True,
                columnwise=True,
                force_pow_2_scales=scaling.power_of_two,
                block_scaling_dim=1 if scaling.block[1] == 1 else 2,
            )
        quantizer.internal = True  # storages without the dispatch of a tensor subclass
        quantizer.optimize_for_gemm = not operand.is_weight
        return quantizer

    def forward(self, x: list[Any], weight: list[Any], like: Tensor) -> Tensor:
        return self._rows("fprop", "TN", weight, x, like)

    def input_gradient(self, gradient: list[Any], weight: list[Any], like: Tensor) -> Tensor:
        return self._rows("dgrad", "NN", weight, gradient, like)

    def _rows(self, product: str, layout: str, weight: list[Any], rows: list[Any], like: Tensor) -> Tensor:
        """A product with as many rows as there are tokens."""
        splits = [one.size(0) for one in rows]
        width = weight[0].size(0 if layout == "TN" else 1)
        out = torch.empty(sum(splits), width, dtype=like.dtype, device=like.device)
        self._multiply(product, layout, weight, rows, [out], splits)
        return out

    def weight_gradient(self, gradient: list[Any], x: list[Any], dtype: torch.dtype) -> Tensor:
        shape = (len(x), gradient[0].size(1), x[0].size(1))
        out_ENK = torch.empty(shape, dtype=dtype, device=x[0].device)
        splits = [one.size(0) for one in x]
        self._multiply("wgrad", "NT", x, gradient, list(out_ENK.unbind()), splits)
        return out_ENK

    def _multiply(self, product: str, layout: str, a: list[Any], b: list[Any], out: list[Tensor], splits: list[int]) -> None:
        """Write the products of all experts, `layout` saying which of the two is transposed, into one matrix or one for each."""
        self.engine.gemm.general_grouped_gemm(
            a,
            b,
            out,
            [None] * len(a),
            out[0].dtype,
            layout=layout,
            m_splits=splits,
            grad=product != "fprop",
            use_split_accumulator=self.recipe.split_accumulator(product),
            single_output=product != "wgrad",
        )

    def pack(self, *operands: list[Any]) -> tuple[list[Tensor], Any]:
        storages = [one for operand in operands for one in operand]
        for one in storages:
            one.update_usage(rowwise_usage=False, columnwise_usage=True)
        tensors, structure = self.engine.pytorch.prepare_for_saving(*storages)
        return tensors, ([len(operand) for operand in operands], structure)

    def unpack(self, tensors: Sequence[Tensor], structure: Any) -> tuple[list[Any], ...]:
        lengths, storages = structure
        left = iter(self.engine.pytorch.restore_from_saved(storages, list(tensors)))
        return tuple([next(left) for _ in range(length)] for length in lengths)


class FusedArithmetic(EngineArithmetic):
    """As `EngineArithmetic`, by blocks; our kernels quantise rows, in one launch for all experts and SwiGLU in the same pass."""

    def __init__(self, recipe: Recipe, engine: TransformerEngine, history: AmaxHistory | None = None) -> None:
        super().__init__(recipe, engine, history)
        self.kernels = importlib.import_module(".fused", __package__)  # imports triton

    def quantize(self, operand: Operand, matrix: Tensor, rows: Sequence[int]) -> list[Any]:
        if operand.is_weight or matrix.shape[-1] % BLOCK:
            return super().quantize(operand, matrix, rows)
        return self._storages(self.kernels.quantize_rows(matrix.contiguous(), rows), matrix)

    def quantize_swiglu(self, h_RH: Tensor, rows: Sequence[int]) -> list[Any]:
        if h_RH.shape[-1] % (2 * BLOCK):
            return super().quantize_swiglu(h_RH, rows)
        return self._storages(self.kernels.quantize_swiglu(h_RH, rows), h_RH)

    def quantize_swiglu_gradient(self, da_RF: Tensor, h_RH: Tensor, rows: Sequence[int]) -> list[Any]:
        if h_RH.shape[-1] % (2 * BLOCK):
            return super().quantize_swiglu_gradient(da_RF, h_RH, rows)
        return self._storages(self.kernels.quantize_swiglu_gradient(da_RF, h_RH, rows), h_RH)

    def _storages(self, blocks: Any, like: Tensor) -> list[Any]:
        """What the kernels wrote, as Transformer Engine's products read it."""
        pytorch = self.engine.pytorch
        quantizer = self._quantizer(Operand.INPUT, 0, like.device)
        return [
            pytorch.Float8BlockwiseQTensorStorage(
                rowwise_data=row_data.view(torch.uint8),
                rowwise_scale_inv=row_scale_inverse,
                columnwise_data=column_data.view(torch.uint8),
                columnwise_scale_inv=column_scale_inverse,
                fp8_dtype=pytorch.DType.kFloat8E4M3,
                quantizer=quantizer,
                is_2D_scaled=False,
                fake_dtype=like.dtype,
            )
            for row_data, row_scale_inverse, column_data, column_scale_inverse in blocks.of_experts()
        ]
