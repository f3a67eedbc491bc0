"""Packing long trajectories into rows: time, fill and balance, with TRL's packer beside it. `make bench` prints the table.

Lengths are log-normal with mean 43,700 and sigma 0.6, seed 0, clipped to 512 and 131,072; rows hold 131,072 tokens.
"""

import random
from typing import Any

import numpy as np
import pytest
from polymath.compiler.estimates.compute import document_flops
from polymath.runtime.data.packing import bins, by_cost_in_windows
from polymath.specs.families import SIZES

pytest.importorskip("pytest_benchmark")

ROW = 131_072
RANKS = 8
WINDOW = 32


def drawn_lengths(count: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(np.log(43_700) - 0.6**2 / 2, 0.6, count)
    return [int(length) for length in np.clip(drawn, 512, ROW)]


def fill(lengths: list[int], rows: int) -> float:
    return sum(lengths) / (rows * ROW)


def balance(costs: list[float]) -> float:
    """Mean over maximum of the ranks' cost, one row each, as a mean over steps."""
    steps = [costs[first : first + RANKS] for first in range(0, len(costs) - RANKS + 1, RANKS)]
    return float(np.mean([np.mean(step) / max(step) for step in steps]))


@pytest.mark.parametrize("count", [2_000, 100_000])
def test_best_fit_decreasing(benchmark: Any, count: int) -> None:
    lengths = drawn_lengths(count)
    benchmark.group = f"packing {count:,} lengths"
    rows = benchmark.pedantic(bins, args=(lengths, ROW), rounds=5, warmup_rounds=1)
    flops = document_flops(SIZES["qwen3_5_moe"]["35b-a3b"])
    costs = [sum(flops["per_token"] * lengths[item] + flops["per_square"] * lengths[item] ** 2 for item in row) for row in rows]
    generator = random.Random(0)
    generator.shuffle(costs)
    order = by_cost_in_windows(costs, RANKS, WINDOW, generator)
    benchmark.extra_info |= {
        "rows": len(rows),
        "fill": round(fill(lengths, len(rows)), 4),
        "balance at random": round(balance(costs), 4),
        "balance by cost": round(balance([costs[row] for row in order]), 4),
    }
    assert sorted(item for row in rows for item in row) == list(range(count))


@pytest.mark.parametrize("count", [2_000])
def test_trl(benchmark: Any, count: int, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("benchmark_only"):
        pytest.skip("others are timed by `make bench` only")
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    lengths = drawn_lengths(count)
    dataset = Dataset.from_dict({"input_ids": [np.zeros(length, dtype=np.int32) for length in lengths]})
    arguments = {"strategy": "bfd", "map_kwargs": {"batch_size": count, "keep_in_memory": True, "load_from_cache_file": False}}
    benchmark.group = f"packing {count:,} lengths"
    packed = benchmark.pedantic(pack_dataset, args=(dataset, ROW), kwargs=arguments, rounds=3, warmup_rounds=1)
    benchmark.extra_info |= {"rows": len(packed), "fill": round(fill(lengths, len(packed)), 4)}
    assert len(packed)
