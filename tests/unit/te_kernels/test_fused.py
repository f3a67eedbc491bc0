"""The kernels quantise as the reference, byte for byte; run on a CPU by Triton's interpreter, in a process of their own."""

import importlib.util
import os
import subprocess
import sys

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton (290 MB)", allow_module_level=True)

    def test_the_kernels_agree_with_the_reference_by_the_interpreter() -> None:
        # Triton decides at import whether kernels are interpreted; other tests of this process may have imported it.
        arguments = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
        finished = subprocess.run(
            arguments, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stdout[-3000:]

else:
    import stand_in
    import torch
    from fp8_layers import arithmetic, layer, passed, recipe
    from fused_checks import CASES, same_bytes, sample
    from polymath.te_kernels import fused
    from polymath.te_kernels.experts import swiglu, swiglu_gradient
    from polymath.te_kernels.grouped import FusedArithmetic

    @pytest.mark.parametrize("rows", CASES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_rows_are_quantised_as_by_the_reference(rows: tuple[int, ...], dtype: torch.dtype) -> None:
        x_RC = sample(sum(rows), 256, dtype)
        assert same_bytes(fused.quantize_rows(x_RC, rows), x_RC) == 0

    # exp is not the same to the last bit everywhere, so a value may fall on the other side of a rounding.
    FLIPPED = 1e-3

    @pytest.mark.parametrize("rows", CASES, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_swiglu_and_its_gradient_are_quantised_as_by_the_reference(rows: tuple[int, ...], dtype: torch.dtype) -> None:
        h_RH, da_RF = sample(sum(rows), 512, dtype) / 4, sample(sum(rows), 256, dtype)
        assert same_bytes(fused.quantize_swiglu(h_RH, rows), swiglu(h_RH)) <= FLIPPED
        assert same_bytes(fused.quantize_swiglu_gradient(da_RF, h_RH, rows), swiglu_gradient(da_RF, h_RH)) <= FLIPPED

    @pytest.mark.parametrize("special", [0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 3e38])
    def test_special_numbers_are_quantised_as_by_the_reference(special: float) -> None:
        x_RC = sample(48, 128, torch.float32)
        x_RC[3, 5] = x_RC[17] = special
        assert same_bytes(fused.quantize_rows(x_RC, (16, 32)), x_RC) == 0

    def test_a_layer_with_the_kernels_computes_what_the_reference_says() -> None:
        rows = (32, 0, 176)
        tensors = [tensor.detach().bfloat16() for tensor in layer(rows=rows, width=256, hidden=128)]
        one = recipe("fp8_blockwise")
        found, expected = (
            passed(tensors, rows, FusedArithmetic(one, stand_in.engine(one))),
            passed(tensors, rows, arithmetic("fp8_blockwise")),
        )
        for this, other in zip(found, expected, strict=True):
            assert ((this - other).norm() / other.norm()).item() < 1e-3
