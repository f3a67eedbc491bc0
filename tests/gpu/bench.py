"""Times expert layers in FP8 against torch's grouped products in bfloat16, at the shapes of Qwen3.5-35B-A3B.

    python tests/gpu/bench.py [--out FILE.json]      # make bench-gpu: on a CUDA machine with torch; says what else it lacks
    python tests/gpu/bench.py --device cpu --tiny    # the same program with the reference, to see that it works; no figure of use

Each way is timed forward and backward with CUDA events: the products alone, on operands that are ready; the experts, which quantise
and compute SwiGLU too; and the whole layer from scores to combined tokens. Ways take turns, so that a change of clock meets all of
them. The peaks of the card (bfloat16, FP8, memory) are measured in the same run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from layers import Problem, bf16_experts, bf16_layer, fp8_layer, problem, recipe_of, sorted_rows
from polymath.te_kernels.experts import Arithmetic, expert_layer
from polymath.te_kernels.grouped import EngineArithmetic, engine_arithmetic
from polymath.te_kernels.history import AmaxHistory
from polymath.te_kernels.permute import pad_groups
from polymath.te_kernels.recipe import Operand, TransformerEngineMissing, load
from polymath.te_kernels.reference import ReferenceArithmetic
from standalone import machine
from torch import Tensor
from traffic import Shape, passes

QWEN = {"experts": 256, "per_token": 8, "width": 2048, "hidden": 512}
TINY = {"experts": 4, "per_token": 2, "width": 128, "hidden": 128}
FORMATS = ("fp8_blockwise", "fp8_current", "fp8_delayed")
WARM_UP = 3  # rounds that do not count
PARTS = ("products", "experts", "layer")
Way = tuple[Callable[[], Tensor], Callable[[Tensor], None]]  # forward, and backward from what it returned


@dataclass(frozen=True, kw_only=True)
class Result:
    """One way at one shape."""

    tokens: int
    routing: str
    part: str  # one of PARTS
    way: str
    forward_ms: float
    both_ms: float
    tflops: float  # of forward and backward
    of_peak: float | None  # of the card's FP8 or bfloat16 peak, measured in this run
    speedup: float | None  # of bfloat16's forward and backward
    moved_gb: float | None  # by the byte count of traffic.py, of a whole layer
    memory_gb: float | None  # at its peak, above what the problem takes


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to try the program")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("expert-bench.json"))
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.exit(0, "skipped: torch sees no CUDA device; --device cpu --tiny tries the program without one\n")
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    peaks = measure_peaks(chosen.device, 256 if chosen.tiny else 8192)
    sizes = (64,) if chosen.tiny else (8_192, 32_768)
    results: list[Result] = []
    lacking: list[str] = []
    for tokens in sizes:
        for routing in ("balanced", "skewed"):
            results += measure(tokens, routing, chosen.device, chosen.tiny, chosen.rounds, peaks, lacking)
    print(f"\npeaks measured: {json.dumps(peaks)}\n\n{as_table(results)}")
    for line in dict.fromkeys(lacking):
        print(f"lacks: {line}")
    report = {"machine": about, "peaks": peaks, "lacks": list(dict.fromkeys(lacking)), "results": [asdict(one) for one in results]}
    chosen.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(
    tokens: int, routing: str, device: str, tiny: bool, rounds: int, peaks: dict[str, float], lacking: list[str]
) -> list[Result]:
    """All ways at one shape."""
    sizes = TINY if tiny else QWEN
    one = problem(tokens=tokens, routing=routing, dtype=torch.bfloat16, device=device, **sizes)
    shape = Shape(tokens=tokens, **sizes)
    found: list[Result] = []
    for part in PARTS:
        ways = _ways(part, one, device, lacking)
        forward, both, memory = times(ways, one, device, rounds)
        for way in ways:
            in_fp8 = way != "bf16"
            peak = peaks.get("fp8_tflops" if in_fp8 else "bf16_tflops")
            tflops = shape.flops() / both[way] / 1e9
            counted = "bf16" if not in_fp8 else "fused" if way == "fp8_blockwise" else "separate"
            found.append(
                Result(
                    tokens=tokens,
                    routing=routing,
                    part=part,
                    way=way,
                    forward_ms=forward[way],
                    both_ms=both[way],
                    tflops=tflops,
                    of_peak=tflops / peak if peak else None,
                    speedup=both["bf16"] / both[way],
                    moved_gb=sum(p.bytes for p in passes(shape, counted)) / 1e9 if part == "layer" else None,
                    memory_gb=memory[way],
                )
            )
    return found


def _ways(part: str, one: Problem, device: str, lacking: list[str]) -> dict[str, Way]:
    """What is timed, by name. Rows are sorted and padded beforehand, but for the whole layer."""
    x_RD = sorted_rows(one)[0].detach().requires_grad_()
    offsets_E = one.rows_E.cumsum(0).to(torch.int32)
    if part == "products":
        found = {"bf16": _bf16_products(x_RD.detach(), one, offsets_E)}
    else:
        found = {
            "bf16": _by_autograd((lambda: bf16_experts(x_RD, one, offsets_E)) if part == "experts" else (lambda: bf16_layer(one)))
        }
    for name in FORMATS:
        recipe = recipe_of(name)
        x_PD, padded_E, _ = pad_groups(x_RD.detach(), one.rows_E, recipe.alignment)
        x_PD.requires_grad_()
        rows = padded_E.tolist()
        for way, (arithmetic, engine) in _arithmetics(name, len(rows), device, lacking).items():
            if part == "products":
                found[way] = _fp8_products(x_PD.detach(), one, rows, arithmetic)
            elif part == "experts":
                found[way] = _by_autograd(lambda a=arithmetic, x=x_PD, r=rows: expert_layer(x, *one.weights, r, a))
            else:
                layer = fp8_layer(arithmetic, recipe.alignment, engine)
                found[way] = _by_autograd(lambda run=layer: run(one))
    return found


def _arithmetics(name: str, experts: int, device: str, lacking: list[str]) -> dict[str, tuple[Arithmetic, Any]]:
    """The arithmetics of a format that this machine has, each with its engine."""
    recipe = recipe_of(name)
    history = AmaxHistory(recipe=recipe, experts=experts) if name == "fp8_delayed" else None
    if history is not None:
        history.to(torch.device(device))
    if device == "cpu":
        return {name: (ReferenceArithmetic(recipe, history), None)}
    try:
        engine = load(recipe)
        best = engine_arithmetic(recipe, history)
    except TransformerEngineMissing as error:
        lacking.append(str(error).replace("\n", " "))
        return {}
    plain = EngineArithmetic(recipe, engine, history)
    return {name: (best, engine), **({f"{name}, unfused": (plain, engine)} if type(best) is not EngineArithmetic else {})}


def _by_autograd(forward: Callable[[], Tensor]) -> Way:
    gradient = torch.randn_like(forward().detach())
    return forward, lambda out: out.backward(gradient)


def _bf16_products(x_RD: Tensor, one: Problem, offsets_E: Tensor) -> Way:
    w1_EFD, w2_EDF, w3_EFD = (weight.detach() for weight in one.weights)
    h_RF = torch._grouped_mm(x_RD, w1_EFD.transpose(-2, -1), offs=offsets_E)

    def forward() -> Tensor:
        for weight_EFD in (w1_EFD, w3_EFD):
            torch._grouped_mm(x_RD, weight_EFD.transpose(-2, -1), offs=offsets_E)
        return torch._grouped_mm(h_RF, w2_EDF.transpose(-2, -1), offs=offsets_E)

    def backward(dy_RD: Tensor) -> None:
        torch._grouped_mm(dy_RD, w2_EDF, offs=offsets_E)
        torch._grouped_mm(dy_RD.t(), h_RF, offs=offsets_E)
        for weight_EFD in (w1_EFD, w3_EFD):
            torch._grouped_mm(h_RF, weight_EFD, offs=offsets_E)
            torch._grouped_mm(h_RF.t(), x_RD, offs=offsets_E)

    return forward, backward


def _fp8_products(x_PD: Tensor, one: Problem, rows: list[int], arithmetic: Arithmetic) -> Way:
    w1_EFD, w2_EDF, w3_EFD = (weight.detach() for weight in one.weights)
    x = arithmetic.quantize(Operand.INPUT, x_PD, rows)
    w13 = arithmetic.quantize(Operand.GATE_UP, torch.cat([w1_EFD, w3_EFD], dim=1), rows)
    h_PH = arithmetic.forward(x, w13, like=x_PD)
    a = arithmetic.quantize_swiglu(h_PH, rows)
    w2 = arithmetic.quantize(Operand.DOWN, w2_EDF, rows)
    dy = arithmetic.quantize(Operand.OUTPUT_GRADIENT, x_PD, rows)
    dh = arithmetic.quantize(Operand.HIDDEN_GRADIENT, h_PH, rows)

    def forward() -> Tensor:
        arithmetic.forward(x, w13, like=x_PD)
        return arithmetic.forward(a, w2, like=x_PD)

    def backward(_: Tensor) -> None:
        arithmetic.input_gradient(dy, w2, like=x_PD)
        arithmetic.weight_gradient(dy, a, x_PD.dtype)
        arithmetic.input_gradient(dh, w13, like=x_PD)
        arithmetic.weight_gradient(dh, x, x_PD.dtype)

    return forward, backward


def times(
    ways: dict[str, Way], one: Problem, device: str, rounds: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float | None]]:
    """Median milliseconds of a forward, and of a forward and backward, and gigabytes at the peak, in interleaved rounds."""
    forward: dict[str, list[float]] = {way: [] for way in ways}
    both: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, float | None] = dict.fromkeys(ways)
    for number in range(rounds + WARM_UP):
        for way, (run, back) in ways.items():
            one.forget_gradients()
            if device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            clock = Clock(device)
            out = run()
            middle = clock.lap()
            back(out)
            end = clock.lap()
            if number >= WARM_UP:
                forward[way].append(middle())
                both[way].append(middle() + end())
            if device == "cuda":
                memory[way] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return _medians(forward), _medians(both), memory


class Clock:
    """Milliseconds between laps: CUDA events, or the wall on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.last = self._now()

    def _now(self) -> "torch.cuda.Event | float":
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self) -> Callable[[], float]:
        start, end = self.last, self._now()
        self.last = end

        def milliseconds() -> float:
            if isinstance(start, float) and isinstance(end, float):
                return (end - start) * 1e3
            end.synchronize()  # type: ignore[union-attr]
            return start.elapsed_time(end)  # type: ignore[union-attr]

        return milliseconds


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}


def measure_peaks(device: str, size: int) -> dict[str, float]:
    """TFLOP/s of large products in bfloat16 and FP8, and GB/s of a copy, on this device now."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = {"bf16_tflops": 2 * size**3 / _fastest(lambda: a @ b, device) / 1e9}
    one = torch.ones((), device=device)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
    try:
        multiply = lambda: torch._scaled_mm(a8, b8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: E731
        found["fp8_tflops"] = 2 * size**3 / _fastest(multiply, device) / 1e9
    except (RuntimeError, ValueError) as error:
        print(f"lacks: FP8 products of torch: {str(error).splitlines()[0]}")
    target = torch.empty_like(a)
    found["copy_gb_per_second"] = 2 * a.numel() * a.element_size() / _fastest(lambda: target.copy_(a), device) / 1e6
    return {name: round(value, 4) for name, value in found.items()}


def _fastest(run: Callable[[], object], device: str, rounds: int = 10) -> float:
    """Milliseconds of the fastest of some rounds."""
    found = []
    for _ in range(rounds):
        clock = Clock(device)
        run()
        found.append(clock.lap()())
    return min(found)


def as_table(results: list[Result]) -> str:
    """Markdown."""
    lines = [
        "| tokens | routing | part | way | forward ms | with backward | TFLOP/s | of peak | times bf16 | GB moved | GB memory |",
        "|" + "---|" * 11,
    ]

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for one in results:
        cells = (
            f"{one.tokens:,}",
            one.routing,
            one.part,
            one.way,
            f"{one.forward_ms:.2f}",
            f"{one.both_ms:.2f}",
            f"{one.tflops:.1f}",
        )
        more = (shown(one.of_peak, ".0%"), shown(one.speedup, ".2f"), shown(one.moved_gb, ".1f"), shown(one.memory_gb, ".2f"))
        lines.append(f"| {' | '.join((*cells, *more))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
