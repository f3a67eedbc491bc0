"""What the tests of whole runs on vLLM share: how a run is launched, killed and launched again, and what must be true of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from end_to_end.polymath import REPOSITORY, job_folder, polymath
from polymath.runtime.engines.vllm_launch import PYTHON
from polymath.runtime.ledger import Ledger
from stand_in_worker import interpreter

from . import dying_worker

RECIPE = REPOSITORY / "recipes" / "smoke_vllm.yaml"
SECONDS = 1200  # engines start in 10 s on an idle machine, and in minutes on a busy one


def launch(plan: Path, run: Path, *, exit_code: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """Launch a plan to its end, which must be this one; what it said."""
    launched = polymath("launch", plan, "--run-dir", run, environment=environment, seconds=SECONDS)
    assert launched.returncode == exit_code, launched.stderr[-4000:] + launched.stdout[-2000:]
    return launched.stderr + launched.stdout


def metrics_of(plan: Path, run: Path) -> list[dict[str, Any]]:
    """What distillation says of its steps."""
    lines = (job_folder(plan, run, "distill") / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def engines_of(plan: Path, run: Path, job: str) -> list[dict[str, Any]]:
    """What is known of the engines of a job."""
    folder = job_folder(plan, run, job) / "engines"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that has ended stays listed until whoever inherited it has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ledger_of(plan: Path, run: Path) -> Ledger:
    return Ledger(job_folder(plan, run, "distill") / "batches")


def require_whole(plan: Path, run: Path, versions: list[int]) -> None:
    """Every step was trained once, on what the policy of its version wrote, and engine and trainer agreed."""
    metrics, ledger = metrics_of(plan, run), ledger_of(plan, run)
    assert [line["step"] for line in metrics] == list(range(1, len(versions) + 1))
    for index, version in enumerate(versions):
        assert {sample.policy_version for sample in ledger.read(index)} == {version}
    gaps = [line["parity_gap_max"] for line in metrics if "parity_gap_max" in line]
    assert gaps and max(gaps) < 1e-4


def launch_with_a_death(plan: Path, run: Path, folder: Path, *, index: int, version: int) -> None:
    """Launch a run whose acting engine is killed while it writes the rollout batch `index`, and launch it again to its end."""
    when = folder / "dies"
    when.write_text(f"distill {version}")
    environment = {PYTHON: str(interpreter(folder, dying_worker.__file__)), dying_worker.WHEN: str(when)}
    said = launch(plan, run, exit_code=7, environment=environment)
    assert "its process has ended" in said
    engines = engines_of(plan, run, "distill")
    assert len(engines) == 2  # one acts, and the teachers take turns on the other
    assert not any(is_alive(engine["pid"]) for engine in engines)
    ledger = ledger_of(plan, run)
    assert ledger.exists(index - 1) and not ledger.exists(index)
    published = {path: path.stat().st_mtime_ns for path in ledger.folder.rglob("*") if path.is_file()}
    launch(plan, run)
    assert all(path.stat().st_mtime_ns == when for path, when in published.items())  # replayed, not rolled out again
