"""Loss and gradients of distillation from hidden states, on two threads. `subset_loss.py` measures memory and compares in pairs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from .subset_loss import THREADS, TRL_TOKENS_AT_MOST, WAYS, Problem, memory_of_own_process, problem

CASES = {"512 x 256": (512, 256), "4096 x 1024": (4096, 1024)}
LARGE_VOCABULARY, LARGE_WIDTH = 248_320, 2048  # of Qwen3.5-35B-A3B; head and gradients take 6 GB in float32


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Problem:
    tokens, width = CASES[request.param]
    return problem(tokens=tokens, width=width, k=64, supports="alike", dtype=torch.float32)


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_from_hidden_states(benchmark: Any, case: Problem, way: str, request: pytest.FixtureRequest) -> None:
    tokens = len(case.hidden_NH)
    if way != "ours" and not request.config.getoption("benchmark_only"):
        pytest.skip("others are timed by `make bench` only")
    if way.startswith("trl"):
        pytest.importorskip("trl")
    if way in ("dense", "trl chunked", "trl gkd") and tokens > TRL_TOKENS_AT_MOST:
        pytest.skip("logits of a whole vocabulary for so many tokens take minutes or more memory than there is")
    benchmark.group = f"N={tokens} H={case.hidden_NH.shape[1]}"
    _measure(benchmark, case, way)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("k", [8, 32, 64, 256])
@pytest.mark.parametrize("way", ["ours", "accumulating"])
def test_a_large_vocabulary(benchmark: Any, way: str, k: int, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("benchmark_only"):
        pytest.skip("6 GB of head and gradients; `make bench` times it")
    case = problem(tokens=512, width=LARGE_WIDTH, k=k, supports="alike", dtype=dtype, vocabulary=LARGE_VOCABULARY)
    benchmark.group = f"V={LARGE_VOCABULARY} H={LARGE_WIDTH} K={k} {dtype}"
    _measure(benchmark, case, way)


def _measure(benchmark: Any, case: Problem, way: str) -> None:
    """Rounds from no gradients, and how fast the best of them moved the floor's bytes."""
    benchmark.pedantic(WAYS[way], args=(case,), setup=case.forget_gradients, rounds=3, warmup_rounds=1)
    benchmark.extra_info["floor_bytes"] = case.floor_bytes()
    if benchmark.stats is not None:  # absent under --benchmark-disable
        benchmark.extra_info["floor_bytes_per_second"] = round(case.floor_bytes() / benchmark.stats.stats.min)


def test_ours_grows_the_process_by_less_than_a_tenth_of_what_the_plain_way_does() -> None:
    ours, plain = (memory_of_own_process(way, [])["peak"] for way in ("ours", "plain"))
    assert ours < plain / 10
