"""How long a user waits for `polymath validate`: the promise is half a second, start of Python included."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
TEMPLATE = Path(__file__).parents[2] / "specs" / "init.yaml"
PROMISED_SECONDS = 0.5


def test_validate_answers_in_half_a_second(benchmark) -> None:  # type: ignore[no-untyped-def]
    command = [sys.executable, "-m", "polymath.runtime.cli", "validate", str(TEMPLATE)]
    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True, "capture_output": True}, rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:  # absent under --benchmark-disable
        assert benchmark.stats.stats.min < PROMISED_SECONDS
