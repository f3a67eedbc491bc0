"""The recipe of a plan, and the one place that imports Transformer Engine.

A plan names a recipe by its class in Transformer Engine and that class's exact arguments, so what the compiler wrote is what the
GPU runs; the reference reads its scaling from the same arguments. Nothing is imported from Transformer Engine until a layer asks
for it: the package cannot even be imported on a machine without a GPU.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import torch

from . import INSTALL

FAILURES = (ImportError, RuntimeError, FileNotFoundError, AssertionError)  # what importing a broken installation was seen to raise
BLOCK = 128  # of Float8BlockScaling
MX_BLOCK = 32  # of MXFP8BlockScaling


class Operand(Enum):
    """What a product of an expert layer reads. `experts.py` says which product reads which."""

    INPUT = 0  # x_RD
    GATE_UP = 1  # w13_EHD
    HIDDEN = 2  # a_RF
    DOWN = 3  # w2_EDF
    OUTPUT_GRADIENT = 4  # dy_RD
    HIDDEN_GRADIENT = 5  # dh_RH

    @property
    def is_weight(self) -> bool:
        return self in (Operand.GATE_UP, Operand.DOWN)

    @property
    def is_gradient(self) -> bool:
        return self in (Operand.OUTPUT_GRADIENT, Operand.HIDDEN_GRADIENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How one operand becomes FP8."""

    dtype: torch.dtype  # e4m3, or e5m2 where the recipe says so
    block: tuple[int, int] | None  # along and across the product's inner dimension; None: an expert's whole matrix shares a scale
    power_of_two: bool  # scales are powers of two, so that scaling itself never rounds
    e8m0: bool = False  # scales are exponents of MXFP8, from 2^-127 to 2^127
    from_history: bool = False  # the scale comes from earlier steps


class TransformerEngineMissing(RuntimeError):
    """Transformer Engine is absent, broken, too old or refuses this machine. The message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A recipe as a plan writes it.

    Raises:
        ValueError: a class that is not known here.
    """

    name: str  # class in transformer_engine.common.recipe
    arguments: Mapping[str, Any]  # its keyword arguments, in JSON: formats by name, product settings as mappings

    def __post_init__(self) -> None:
        if self.name not in ("Float8BlockScaling", "Float8CurrentScaling", "DelayedScaling", "MXFP8BlockScaling"):
            raise ValueError(f"no expert layer computes {self.name}")

    @property
    def alignment(self) -> int:
        """Rows that an expert's group is a multiple of: Transformer Engine's `get_align_size_for_quantization`."""
        return MX_BLOCK if self.name == "MXFP8BlockScaling" else 16

    def scaling(self, operand: Operand) -> Scaling:
        """How an operand is quantised."""
        hybrid_gradient = operand.is_gradient and self.arguments["fp8_format"] == "HYBRID"
        dtype = torch.float8_e5m2 if hybrid_gradient else torch.float8_e4m3fn
        if self.name == "Float8BlockScaling":
            group = "w" if operand.is_weight else "grad" if operand.is_gradient else "x"
            across = BLOCK if self.arguments[f"{group}_block_scaling_dim"] == 2 else 1
            return Scaling(dtype=dtype, block=(BLOCK, across), power_of_two=not self.arguments["use_f32_scales"])
        if self.name == "MXFP8BlockScaling":
            return Scaling(dtype=dtype, block=(MX_BLOCK, 1), power_of_two=True, e8m0=True)
        if self.name == "Float8CurrentScaling":
            return Scaling(dtype=dtype, block=None, power_of_two=self.arguments["use_power_2_scales"])
        return Scaling(dtype=dtype, block=None, power_of_two=False, from_history=True)

    def split_accumulator(self, product: str) -> bool:
        """Whether partial sums of `fprop`, `dgrad` or `wgrad` leave the tensor cores in float32 before they are added up."""
        stated = self.arguments.get(f"fp8_gemm_{product}")
        # A recipe that does not say leaves it to Transformer Engine's `_2X_ACC_FPROP`, `_2X_ACC_DGRAD` and `_2X_ACC_WGRAD`.
        return stated["use_split_accumulator"] if stated is not None else product != "fprop"

    def build(self, engine: ModuleType) -> Any:
        """The object of Transformer Engine. `engine` is its module `common.recipe`."""
        arguments = dict(self.arguments)
        for name, value in arguments.items():
            if name == "fp8_format":
                arguments[name] = engine.Format[value]
            elif name.startswith("fp8_gemm_"):
                arguments[name] = engine.MMParams(**value)
        return getattr(engine, self.name)(**arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerEngine:
    """The modules of Transformer Engine that this package calls, and its object of a recipe."""

    pytorch: ModuleType
    gemm: ModuleType
    extension: ModuleType  # transformer_engine_torch, the compiled part
    recipe: Any


def load(recipe: Recipe) -> TransformerEngine:
    """Import Transformer Engine and let it check this machine.

    Raises:
        TransformerEngineMissing: names the recipe, the compute capability of this machine and the line that installs it.
    """
    try:
        modules = [
            importlib.import_module(name)
            for name in (
                "transformer_engine.common.recipe",
                "transformer_engine.pytorch",
                "transformer_engine.pytorch.cpp_extensions.gemm",
                "transformer_engine.pytorch.quantization",
                "transformer_engine_torch",
            )
        ]
        recipes, pytorch, gemm, quantization, extension = modules
        built = recipe.build(recipes)
        quantization.check_recipe_support(built)
        alignment = quantization.get_align_size_for_quantization(built)
    except (*FAILURES, AttributeError, TypeError) as error:  # the last two: a version that lacks a recipe or one of its arguments
        raise TransformerEngineMissing(_missing(recipe, error)) from error
    if alignment != recipe.alignment:
        raise TransformerEngineMissing(_missing(recipe, f"it pads groups to {alignment} rows, and the plan to {recipe.alignment}"))
    return TransformerEngine(pytorch=pytorch, gemm=gemm, extension=extension, recipe=built)


def _missing(recipe: Recipe, why: object) -> str:
    there = "no GPU" if not torch.cuda.is_available() else "compute capability {}.{}".format(*torch.cuda.get_device_capability())
    try:
        installed = f"version {importlib.metadata.version('transformer-engine')} is installed"
    except importlib.metadata.PackageNotFoundError:
        installed = "it is not installed"
    reason = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else str(why)
    return (
        f"Transformer Engine cannot compute {recipe.name} here ({there}; {installed}): {reason.splitlines()[0]}\n"
        f"  install it beside the GPU's torch: {INSTALL}\n"
        "  or compute the experts in another format: `precision: {experts: {format: bfloat16}}`"
    )
