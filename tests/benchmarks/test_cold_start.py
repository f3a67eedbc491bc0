"""How long a user waits for `validate` and `compile`, the start of Python included. `make bench` shows the figures, and
`docs/numbers.md` keeps those of one machine.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")
RECIPES = Path(__file__).parents[2] / "recipes"
TINY, LARGEST = RECIPES / "agents_a1_tiny.yaml", RECIPES / "agents_a1_35b_1024.yaml"
NEVER_LOADED = ("torch", "transformers", "torchtitan", "numpy", "jsonschema", "rich", "fsspec")


def waits_at_most(benchmark: Any, command: list[str], seconds: float) -> None:
    """Measure a command of the command line, and refuse what would make it slow whatever the machine."""
    probe = [sys.executable, "-X", "importtime", "-m", "polymath.runtime.cli", *command]
    imported = {
        line.rsplit("|", 1)[-1].strip()
        for line in subprocess.run(probe, capture_output=True, text=True, check=True).stderr.splitlines()
    }
    assert "polymath.compiler.driver" in imported
    assert not imported.intersection(NEVER_LOADED)
    run = [sys.executable, "-m", "polymath.runtime.cli", *command]
    benchmark.pedantic(subprocess.run, args=(run,), kwargs={"check": True, "capture_output": True}, rounds=7, warmup_rounds=1)
    if benchmark.stats is not None:  # absent under --benchmark-disable
        assert benchmark.stats.stats.min < seconds  # the least disturbed of the rounds


def test_validate_of_the_tiny_recipe_takes_less_than_a_third_of_a_second(benchmark: Any) -> None:
    waits_at_most(benchmark, ["validate", str(TINY)], 0.3)


def test_compile_for_1024_gpus_takes_less_than_half_a_second(benchmark: Any, tmp_path: Path) -> None:
    waits_at_most(benchmark, ["compile", str(LARGEST), "-o", str(tmp_path / "plan")], 0.5)
