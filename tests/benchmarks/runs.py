"""Compiles a recipe and runs single jobs of it on one rank, for benchmarks that compare runs."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def compile_recipe(recipe: Path, plan: Path, settings: Iterable[str]) -> None:
    """Write the plan of a recipe with some settings."""
    _call("polymath.runtime.cli", "compile", recipe, "-o", plan, *(part for one in settings for part in ("--set", one)))


def run_jobs(plan: Path, jobs: Iterable[str], run_dir: Path) -> None:
    """Run jobs of a plan under torchrun, one rank."""
    elastic = ("torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--nproc-per-node=1")
    chosen = (part for job in jobs for part in ("--job", job))
    _call(*elastic, "-m", "polymath.runtime", plan, *chosen, "--run-dir", run_dir)


def _call(*arguments: str | Path) -> None:
    """Run a module, and end with its message where it fails."""
    ended = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
