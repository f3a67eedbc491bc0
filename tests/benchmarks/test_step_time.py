"""A step of our trainer over a step of torchtitan's own. `step_time.py` runs more pairs, more ranks and other sizes."""

from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

from .step_time import Case, measure, summary


def test_a_step_over_a_step_of_torchtitans_own_trainer(benchmark: Any, request: pytest.FixtureRequest) -> None:
    case = Case(ranks=1, pairs=20 if request.config.getoption("benchmark_only") else 2, vocabulary=16_384, written=1.0)
    found = summary(benchmark.pedantic(measure, args=(case,), rounds=1))
    benchmark.extra_info |= found
    assert found["largest_loss_difference"] < 1e-5
