"""The number format of experts, as a recipe of Transformer Engine with its exact arguments.

Every argument that decides a number is written out, also where it is Transformer Engine's default: some defaults come from the
environment of the process, and a plan says what runs.
"""

from collections.abc import Mapping
from typing import Any

from ..specs.machine import ExpertPrecision

_SPLIT = {"use_split_accumulator": True}  # partial sums leave the tensor cores in float32
_FAST = {"use_split_accumulator": False}

RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fp8_blockwise": (
        "Float8BlockScaling",
        {
            "use_f32_scales": False,  # scales are powers of two
            "fp8_format": "E4M3",
            "x_block_scaling_dim": 1,  # 1 x 128
            "w_block_scaling_dim": 2,  # 128 x 128
            "grad_block_scaling_dim": 1,
            "fp8_gemm_fprop": _SPLIT,
            "fp8_gemm_dgrad": _SPLIT,
            "fp8_gemm_wgrad": _SPLIT,
            "backward_override": None,
        },
    ),
    "fp8_current": (
        "Float8CurrentScaling",
        {
            "use_power_2_scales": False,
            "fp8_format": "HYBRID",  # e4m3 forward, e5m2 for gradients
            "fp8_gemm_fprop": _FAST,
            "fp8_gemm_dgrad": _SPLIT,
            "fp8_gemm_wgrad": _SPLIT,
            "backward_override": None,
        },
    ),
    "fp8_delayed": (
        "DelayedScaling",
        {
            "margin": 0,
            "fp8_format": "HYBRID",
            "amax_history_len": 1024,
            "amax_compute_algo": "max",
            "reduce_amax": True,
            "backward_override": None,
        },
    ),
    "mxfp8": (
        "MXFP8BlockScaling",
        {"margin": 0, "fp8_format": "E4M3", "backward_override": None, "enable_2d_quantization": False},
    ),
}
SCALED_FORMATS = tuple(RECIPES)


def recipe_of(experts: ExpertPrecision) -> dict[str, Any] | None:
    """The recipe's class and arguments, as a plan holds them; None where the experts are not scaled."""
    if experts.format not in RECIPES:
        return None
    name, arguments = RECIPES[experts.format]
    return {"name": name, "arguments": dict(arguments)}
