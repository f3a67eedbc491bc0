"""What must hold on a GPU: bytes, products, layers and training in FP8, against the reference and float64.

    python tests/gpu/checks.py                 # make test-gpu: on a CUDA machine with torch; says what else it lacks
    python tests/gpu/checks.py --device cpu    # with the reference in the place of Transformer Engine, as far as that goes

Each check stands alone and returns what it measured; pytest runs them too (test_gpu.py). Nothing but torch is needed to start.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layers import Problem, bf16_layer, float64_layer, fp8_layer, problem, recipe_of
from polymath.te_kernels.experts import Arithmetic, swiglu, swiglu_gradient
from polymath.te_kernels.grouped import EngineArithmetic, engine_arithmetic
from polymath.te_kernels.history import AmaxHistory
from polymath.te_kernels.permute import pad_groups, permute_fused, unpermute_fused
from polymath.te_kernels.recipe import Operand, TransformerEngineMissing, load
from polymath.te_kernels.reference import ReferenceArithmetic
from standalone import ROOT, lacks, machine
from torch import Tensor

sys.path.insert(0, str(ROOT / "tests" / "unit" / "te_kernels"))
from fused_checks import CASES, same_bytes, sample

FORMATS = ("fp8_blockwise", "fp8_current", "fp8_delayed")
LAYER = {"tokens": 512, "experts": 8, "per_token": 2, "width": 512, "hidden": 256}
STUDENT = {"tokens": 256, "experts": 4, "per_token": 2, "width": 64, "hidden": 64}  # of the training run
STEPS = 200
ROWS = (144, 0, 32, 336)  # of four experts
ERRORS = {"fp8_blockwise": 0.075, "fp8_current": 0.105, "fp8_delayed": 0.105}  # relative, in norm; as the reference's own
PRODUCTS = 5e-3  # relative, in norm: the rounding of a bfloat16 output is 2e-3, and a tensor core adds in another order
TRAINED = 0.01  # of the final loss


class Lacking(Exception):
    """This machine cannot run a check; the message says what is missing."""


def arithmetic_of(name: str, device: str, experts: int) -> Arithmetic:
    """Transformer Engine's arithmetic; the reference's on a CPU, where there is no other."""
    recipe = recipe_of(name)
    history = AmaxHistory(recipe=recipe, experts=experts) if name == "fp8_delayed" else None
    if history is not None:
        history.to(torch.device(device))
    if device == "cpu":
        return ReferenceArithmetic(recipe, history)
    try:
        return engine_arithmetic(recipe, history)
    except TransformerEngineMissing as error:
        raise Lacking(str(error)) from error


def _engine(name: str, device: str) -> Any:
    if device == "cpu":
        raise Lacking("Transformer Engine runs on a GPU only")
    try:
        return load(recipe_of(name))
    except TransformerEngineMissing as error:
        raise Lacking(str(error)) from error


def check_bytes(device: str) -> str:
    """the bytes of Transformer Engine are the reference's, and its scales"""
    compared = 0
    for name in FORMATS:
        recipe, engine = recipe_of(name), _engine(name, device)
        for operand in Operand:
            for dtype in (torch.bfloat16, torch.float32):
                histories = [AmaxHistory(recipe=recipe, experts=4) if name == "fp8_delayed" else None for _ in range(2)]
                matrix = sample(4 * 256 if operand.is_weight else sum(ROWS), 384, dtype)
                matrix = (matrix.view(4, 256, 384) if operand.is_weight else matrix).to(device)
                for history in filter(None, histories):
                    history.to(matrix.device)
                storages = EngineArithmetic(recipe, engine, histories[0]).quantize(operand, matrix, ROWS)
                ours = ReferenceArithmetic(recipe, histories[1]).quantize(operand, matrix, ROWS)
                for storage, rowwise, columnwise in zip(storages, ours.rowwise, ours.columnwise, strict=True):
                    if rowwise.data_RC.numel():
                        compared += _same(storage, rowwise, columnwise, f"{name} {operand.name} {dtype}")
                if histories[0] is not None and histories[1] is not None:
                    assert torch.equal(histories[0].amax_EO, histories[1].amax_EO), f"{name} {operand.name}: magnitudes"
    return f"{compared:,} bytes equal"


def _same(storage: Any, rowwise: Any, columnwise: Any, what: str) -> int:
    if hasattr(storage, "_rowwise_data"):
        row, column = storage._rowwise_data, storage._columnwise_data
        row_scales, column_scales = storage._rowwise_scale_inv, storage._columnwise_scale_inv
        if not storage._is_2D_scaled:
            row_scales = row_scales.T
        else:
            column_scales = column_scales.T
        for found, expected in ((row_scales, rowwise.scale_inverse), (column_scales, columnwise.scale_inverse)):
            high, wide = expected.shape
            assert torch.equal(found[:high, :wide], expected), f"{what}: scales"  # theirs are padded to multiples of four
    else:
        row, column = storage._data, storage._transpose
        assert torch.equal(storage._scale_inv.view(()), rowwise.scale_inverse.view(())), f"{what}: scale"
    for found, expected in ((row, rowwise.data_RC), (column.T, columnwise.data_RC)):
        assert torch.equal(found, expected.view(torch.uint8)), f"{what}: bytes"
    return row.numel() + column.numel()


def check_products(device: str) -> str:
    """products of Transformer Engine are the reference's, to the rounding of their output"""
    worst = 0.0
    for name in FORMATS:
        engine, recipe = _engine(name, device), recipe_of(name)
        pair = [
            kind(recipe, *([engine] if kind is EngineArithmetic else []), AmaxHistory(recipe=recipe, experts=4))
            for kind in (EngineArithmetic, ReferenceArithmetic)
        ]
        x_RK, w_ENK, g_RN = (
            torch.randn(*shape, device=device, dtype=torch.bfloat16)
            for shape in ((sum(ROWS), 384), (4, 256, 384), (sum(ROWS), 256))
        )
        found = []
        for one in pair:
            one.history.to(x_RK.device)
            x, w = one.quantize(Operand.INPUT, x_RK, ROWS), one.quantize(Operand.GATE_UP, w_ENK, ROWS)
            g = one.quantize(Operand.HIDDEN_GRADIENT, g_RN, ROWS)
            found.append([one.forward(x, w, x_RK), one.input_gradient(g, w, x_RK), one.weight_gradient(g, x, torch.float32)])
        for product, this, other in zip(("forward", "input gradient", "weight gradient"), *found, strict=True):
            error = relative(this, other)
            assert error < PRODUCTS, f"{name}: {product} differs by {error:.1e}"
            worst = max(worst, error)
    return f"at most {worst:.1e}"


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def check_layer(device: str) -> str:
    """a layer is as near to float64 as its format allows, forward and backward"""
    worst = {}
    for name in FORMATS:
        one = problem(**LAYER, routing="skewed", dtype=torch.bfloat16, device=device)
        arithmetic = arithmetic_of(name, device, LAYER["experts"])
        gradient_TD = torch.randn(one.x_TD.shape, generator=torch.Generator().manual_seed(3)).to(device)
        expected = _pass(float64_layer, one, gradient_TD.double())
        run = fp8_layer(arithmetic, recipe_of(name).alignment, None)
        _pass(run, one, gradient_TD.bfloat16())
        if getattr(arithmetic, "history", None) is not None:
            arithmetic.history.step()  # type: ignore[attr-defined]
        found = _pass(run, one, gradient_TD.bfloat16())
        worst[name] = max(relative(this, other) for this, other in zip(found, expected, strict=True))
        assert worst[name] < ERRORS[name], f"{name}: {worst[name]:.3f}"
    return ", ".join(f"{name} {error:.3f}" for name, error in worst.items())


def _pass(run: Callable[[Problem], Tensor], one: Problem, gradient_TD: Tensor) -> list[Tensor]:
    one.forget_gradients()
    out_TD = run(one)
    out_TD.backward(gradient_TD)
    return [out_TD.detach(), *(tensor.grad.clone() for tensor in (one.x_TD, *one.weights) if tensor.grad is not None)]


def check_permutation(device: str) -> str:
    """Transformer Engine's permutation pads, and takes the padding out, as the plain one"""
    engine = _engine("fp8_blockwise", device)
    one = problem(**LAYER, routing="skewed", dtype=torch.bfloat16, device=device)
    x_PD, padded_E, route = permute_fused(engine, one.x_TD, one.scores_TK, one.ids_TK, one.rows_E, 16)
    order_R = one.ids_TK.reshape(-1).argsort(stable=True)
    plain_PD, plain_E, _ = pad_groups(one.x_TD[order_R // LAYER["per_token"]], one.rows_E, 16)
    assert torch.equal(padded_E.cpu(), plain_E.cpu())
    assert torch.equal(x_PD, plain_PD)
    expected_TD = one.x_TD * one.scores_TK.sum(dim=1, keepdim=True)
    error = relative(unpermute_fused(engine, x_PD, route), expected_TD)
    assert error < PRODUCTS, f"{error:.1e}"
    return f"rows equal, tokens to {error:.1e}"


def check_kernels(device: str) -> str:
    """our kernels write the reference's bytes"""
    missing = lacks("triton") or (None if device == "cuda" else "a GPU; Triton's interpreter runs them in tests/unit/te_kernels")
    if missing:
        raise Lacking(missing)
    from polymath.te_kernels import fused

    worst = 0.0
    for rows in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            x_RC = sample(sum(rows), 256, dtype).to(device)
            assert same_bytes(fused.quantize_rows(x_RC, rows), x_RC) == 0, f"rows {rows}, {dtype}"
            h_RH, da_RF = sample(sum(rows), 512, dtype).to(device) / 4, sample(sum(rows), 256, dtype).to(device)
            for blocks, plain in (
                (fused.quantize_swiglu(h_RH, rows), swiglu(h_RH)),
                (fused.quantize_swiglu_gradient(da_RF, h_RH, rows), swiglu_gradient(da_RF, h_RH)),
            ):
                worst = max(worst, same_bytes(blocks, plain))
    assert worst <= 5e-3, f"{worst:.1e} of the bytes differ, more than another exponential explains"
    return f"rows exactly; of SwiGLU {worst:.1e} differ"


def check_training(device: str) -> str:
    """200 steps in FP8 end within 1 % of bfloat16's loss"""
    final = {"bf16": _train(bf16_layer, device)}
    for name in ("fp8_blockwise", "fp8_current"):
        arithmetic = arithmetic_of(name, device, STUDENT["experts"])
        final[name] = _train(fp8_layer(arithmetic, recipe_of(name).alignment, None), device)
        assert abs(final[name] / final["bf16"] - 1) < TRAINED, str(final)
    return ", ".join(f"{name} {loss:.5f}" for name, loss in final.items())


def _train(run: Callable[[Problem], Tensor], device: str) -> float:
    """The loss of a layer that learns another layer's outputs, from float32 weights; a mean of the last 20 steps.

    It falls to a third of where it begins.
    """
    teacher = problem(**STUDENT, routing="skewed", dtype=torch.bfloat16, device=device)
    student = problem(**STUDENT, routing="skewed", dtype=torch.float32, device=device)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in student.weights:
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    optimizer = torch.optim.AdamW(student.weights, lr=1e-2)
    losses = []
    for _ in range(STEPS):
        x_TD = torch.randn(STUDENT["tokens"], STUDENT["width"], generator=generator).to(device, torch.bfloat16)
        teacher.x_TD = student.x_TD = x_TD
        with torch.no_grad():
            target_TD = bf16_layer(teacher).float()
        student.forget_gradients()
        loss = (run(student).float() - target_TD).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < losses[0] / 2, "nothing was learned"
    return sum(losses[-20:]) / 20


def check_fsdp(device: str) -> str:
    """FSDP2 with one rank computes what one process does"""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    size = LAYER if device == "cuda" else {**LAYER, "tokens": 64}
    one = problem(**size, routing="skewed", dtype=torch.float32, device=device)
    arithmetic = arithmetic_of("fp8_blockwise", device, size["experts"])
    run = fp8_layer(arithmetic, 16, None)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1_EFD, self.w2_EDF, self.w3_EFD = (torch.nn.Parameter(weight.detach().clone()) for weight in one.weights)

        def forward(self, x_TD: Tensor) -> Tensor:
            return run(Problem(x_TD, one.scores_TK, one.ids_TK, self.w1_EFD, self.w2_EDF, self.w3_EFD))

    alone, sharded = Layer(), Layer()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            mesh = dist.device_mesh.init_device_mesh(device, (1,))
            fully_shard(sharded, mesh=mesh)
            if device == "cpu":
                sharded.set_force_sum_reduction_for_comms(True)  # type: ignore[attr-defined]
            outputs = [layer(one.x_TD.detach()) for layer in (alone, sharded)]
            for out_TD in outputs:
                out_TD.square().mean().backward()
            assert torch.equal(*outputs), "outputs differ"
            for this, other in zip(alone.parameters(), sharded.parameters(), strict=True):
                assert torch.equal(this.grad, other.grad.full_tensor()), "gradients differ"  # type: ignore[union-attr]
        finally:
            dist.destroy_process_group()
    return "outputs and gradients equal"


def check_recipe(device: str) -> str:
    """the small recipe goes through its three stages with Transformer Engine"""
    missing = lacks("torchtitan", "transformers", "fla") or (None if device == "cuda" else "a GPU")
    if missing:
        raise Lacking(missing)
    _engine("fp8_blockwise", device)
    accelerator = {8: "a100", 9: "h200", 10: "b200"}[torch.cuda.get_device_capability()[0]]
    settings = [
        f"cluster={{accelerator: {accelerator}, per_node: 1, software: {{torch: {torch.__version__.split('+')[0]}}}}}",
        *(f"placement.{kind}={{trainer: {{devices: 1}}}}" for kind in ("sft", "grpo", "distill")),
        "precision={compute: bfloat16, experts: {format: fp8_blockwise, backend: te}}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        recipe = ROOT / "recipes" / "agents_a1_tiny_one_rank.yaml"
        overrides = [part for one in (*settings, f"storage.runs={folder}/runs") for part in ("--set", one)]
        command = [sys.executable, "-m", "polymath.runtime.cli"]
        for arguments in (["compile", str(recipe), "-o", f"{folder}/plan", *overrides], ["launch", f"{folder}/plan"]):
            finished = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=folder)
            assert finished.returncode == 0, finished.stderr[-2000:]
        scoreboard = json.loads(next(Path(folder).glob("runs/*/scoreboard.json")).read_text())
    gain = scoreboard["mean_recovered_gain"]
    assert gain > 0.9, f"the student recovered {gain:.3f} of its teachers' gain"
    return f"recovered gain {gain:.3f}"


CHECKS = (
    check_bytes,
    check_products,
    check_kernels,
    check_permutation,
    check_layer,
    check_training,
    check_fsdp,
    check_recipe,
)


def main() -> int:
    """Run every check; 1 if one fails, 0 where all pass or are skipped with a reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    print("\n".join(f"{name}: {value}" for name, value in machine().items()), flush=True)
    if device == "cuda" and not torch.cuda.is_available():
        print("skipped all: torch sees no CUDA device; --device cpu tries what a CPU can")
        return 0
    failed = 0
    for check in CHECKS:
        try:
            print(f"passed  {check.__doc__}: {check(device)}", flush=True)
        except Lacking as missing:
            print(f"skipped  {check.__doc__}: lacks {missing}", flush=True)
        except Exception:  # one broken check must not hide what the others find
            failed += 1
            print(f"FAILED  {check.__doc__}\n{traceback.format_exc()}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
