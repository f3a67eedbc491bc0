"""Drives the real command line on the smoke recipe, in folders of the test's own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polymath.compiler.plan import Plan, read_plan

REPOSITORY = Path(__file__).parents[2]
SMOKE = REPOSITORY / "recipes" / "smoke.yaml"
TIMEOUT_SECONDS = 400
INSTALLED_TORCH = version("torch").split("+")[0]  # 2.13.0, or 2.15.0 under `make test-newest`


def polymath(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, seconds: int = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run one verb to its end."""
    return subprocess.run(
        [sys.executable, "-m", "polymath.runtime.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def compile_smoke(folder: Path, *settings: str) -> Path:
    """A plan of the smoke recipe that runs in `folder/runs`."""
    return compile_recipe(SMOKE, folder, *settings)


def compile_recipe(recipe: Path, folder: Path, *settings: str) -> Path:
    """A plan of a recipe, with some settings, that runs in `folder/runs`."""
    plan = folder / "plan"
    own = (f"storage.runs={folder / 'runs'}", f"cluster.software.torch={INSTALLED_TORCH}")
    overrides = [part for setting in (*own, *settings) for part in ("--set", setting)]
    finished = polymath("compile", recipe, "-o", plan, *overrides)
    assert finished.returncode == 0, finished.stderr
    return plan


def torchrun(plan: Path, ranks: int, jobs: Sequence[str], run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run jobs by hand, as the README says."""
    elastic = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", f"--nproc-per-node={ranks}"]
    chosen = [part for job in jobs for part in ("--job", job)]
    return subprocess.run(
        [sys.executable, *elastic, "-m", "polymath.runtime", str(plan), *chosen, "--run-dir", str(run_dir)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def job_folder(plan_folder: Path, run_dir: Path, job: str) -> Path:
    """The folder of a job in a run."""
    plan: Plan = read_plan(plan_folder)
    return run_dir / "jobs" / plan.job(job).folder


def losses(folder: Path) -> list[float]:
    """The loss of every step, in order."""
    return step_values(folder, "loss")


def step_values(folder: Path, name: str) -> list[float]:
    """A number of every step, in order; steps count up without a gap."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line[name] for line in lines]


def weights(folder: Path) -> dict[str, str]:
    """sha256 of every file of a job's model."""
    done = json.loads((folder / "DONE.json").read_text())
    return {name: entry["sha256"] for name, entry in done["files"].items() if name.endswith(".safetensors")}
