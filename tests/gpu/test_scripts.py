"""The scripts for a GPU machine, as far as a CPU can try them: their arithmetic, their reports, and what they say is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import traffic
from traffic import Shape, floor_seconds, passes

HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / script), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_operations_and_bytes_are_those_of_the_shape() -> None:
    shape = Shape(tokens=32_768)
    assert shape.rows == 262_144
    assert shape.flops(backward=False) == 2 * 262_144 * 3 * 2048 * 512
    assert shape.flops() == 3 * shape.flops(backward=False)
    by_name = {one.name: one.bytes for one in passes(shape, "fused")}
    assert by_name["gate and up"] == 262_144 * (2048 + 2 * 1024) + 256 * 2 * 2048 * 512
    assert by_name["SwiGLU and quantise"] == 262_144 * 512 * (4 + 2 * (1 + 4 / 128))


def test_fusing_moves_less_than_bfloat16_and_quantising_apart_moves_more() -> None:
    for tokens in (8_192, 32_768):
        moved = {way: sum(one.bytes for one in passes(Shape(tokens=tokens), way)) for way in ("bf16", "separate", "fused")}
        assert moved["fused"] < moved["bf16"] < moved["separate"]


def test_a_floor_is_bound_by_operations_or_by_bytes() -> None:
    shape = Shape(tokens=32_768)
    slow_memory, _ = floor_seconds(shape, "bf16", bytes_per_second=1e9, flops_per_second=1e30)
    assert slow_memory == sum(one.bytes for one in passes(shape, "bf16") if one.kind == "product") / 1e9
    slow_units, _ = floor_seconds(shape, "bf16", bytes_per_second=1e30, flops_per_second=1e12)
    assert slow_units == shape.flops() / 1e12


def test_the_benchmark_runs_on_a_cpu_and_writes_a_table_and_a_json(tmp_path: Path) -> None:
    finished = run("bench.py", "--device", "cpu", "--tiny", "--rounds", "1", "--out", str(tmp_path / "bench.json"))
    assert finished.returncode == 0, finished.stderr
    assert "| 64 | skewed | layer | fp8_blockwise |" in finished.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {(one["part"], one["way"]) for one in report["results"]} == {
        (part, way) for part in ("products", "experts", "layer") for way in ("bf16", "fp8_blockwise", "fp8_current", "fp8_delayed")
    }
    assert all(one["both_ms"] > one["forward_ms"] > 0 for one in report["results"])
    assert report["machine"]["device"] == "cpu"


@pytest.mark.parametrize("script", ["bench.py", "checks.py"])
def test_a_machine_without_a_gpu_is_told_so(script: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    finished = run(script)
    assert finished.returncode == 0, finished.stderr
    assert "no CUDA device" in finished.stdout + finished.stderr


def test_the_checks_run_on_a_cpu_as_far_as_they_go() -> None:
    finished = run("checks.py", "--device", "cpu")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "passed  a layer is as near to float64" in finished.stdout
    assert "skipped  the bytes of Transformer Engine" in finished.stdout


def test_the_tables_of_the_page_are_fresh() -> None:
    page = (HERE.parents[1] / "docs" / "fp8.md").read_text()
    for tokens in (8_192, 32_768):
        assert traffic.table(Shape(tokens=tokens)) in page
