"""A run of three stages with vLLM engines: over our worker, over HTTP, and with an engine that is killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conformance.engines import lacks, settings_of
from end_to_end.polymath import REPOSITORY, compile_recipe, job_folder, polymath
from polymath.compiler.plan import read_plan
from polymath.runtime.engines.vllm import start_worker
from polymath.runtime.ledger import Ledger
from polymath.specs.diagnostics import ExitCode, UserError

pytestmark = [pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or ""), pytest.mark.multi_rank]

RECIPE = REPOSITORY / "recipes" / "smoke_vllm.yaml"
STEPS = 6
SECONDS = 1200  # engines start in 10 s on an idle machine, and in minutes on a busy one


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, run to its end."""
    folder = tmp_path_factory.mktemp("smoke")
    plan = compile_recipe(RECIPE, folder)
    launched = polymath("launch", plan, "--run-dir", folder / "run", seconds=SECONDS)
    assert launched.returncode == 0, launched.stderr[-4000:] + launched.stdout[-2000:]
    return plan


def _metrics(plan: Path) -> list[dict[str, Any]]:
    lines = (job_folder(plan, plan.parent / "run", "distill") / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _engines(plan: Path, job: str) -> list[dict[str, Any]]:
    folder = job_folder(plan, plan.parent / "run", job) / "engines"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _require_whole(plan: Path) -> None:
    """Every step was trained on once, on what its own policy wrote, and engine and trainer agreed."""
    metrics = _metrics(plan)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    ledger = Ledger(job_folder(plan, plan.parent / "run", "distill") / "batches")
    for index in range(STEPS):
        assert {sample.policy_version for sample in ledger.read(index)} == {index}
    gaps = [line["parity_gap_max"] for line in metrics if "parity_gap_max" in line]
    assert gaps and max(gaps) < 1e-4
    for name in ("logprob_gap_max.tools", "logprob_gap_max.instructions"):  # of the tokens that the engine wrote
        assert max(line.get(name, 0.0) for line in metrics) < 1e-3


def test_three_stages_run_on_vllm_and_leave_no_engine_behind(plan: Path) -> None:
    _require_whole(plan)
    for job in ("teachers.instructor.1", "distill", "evaluate.student"):
        engines = _engines(plan, job)
        assert engines and not any(_is_alive(engine["pid"]) for engine in engines)
    assert len(_engines(plan, "distill")) == 2  # one acts, and the teachers take turns on the other
    assert json.loads((plan.parent / "run" / "scoreboard.json").read_text())


def test_the_same_run_over_http_plays_the_same_first_batch(plan: Path, tmp_path: Path) -> None:
    """How vLLM is reached changes no recipe: only what is deleted runs again."""
    first = Ledger(job_folder(plan, plan.parent / "run", "distill") / "batches").read(0)
    run = plan.parent / "run"
    over_http = compile_recipe(
        RECIPE, tmp_path, "engines.transport=http", "placement.distill.scorer.devices=2", "cluster.per_node=5"
    )
    assert read_plan(over_http).recipe_digest == read_plan(plan).recipe_digest
    for job in ("distill", "evaluate.student", "export"):
        shutil.rmtree(job_folder(plan, run, job))
    launched = polymath("launch", over_http, "--run-dir", run, seconds=SECONDS)
    assert launched.returncode == 0, launched.stderr[-4000:] + launched.stdout[-2000:]
    _require_whole(plan)
    again = Ledger(job_folder(plan, run, "distill") / "batches").read(0)
    assert [sample.ids for sample in again] == [sample.ids for sample in first]
    for one, other in zip(first, again, strict=True):
        assert one.support_logprobs_WK is not None and other.support_logprobs_WK is not None
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert (one.support_logprobs_WK - other.support_logprobs_WK).abs().max() < 1e-5


def test_an_engine_that_is_killed_interrupts_the_run_which_then_goes_on(plan: Path) -> None:
    run = plan.parent / "run"
    folder = job_folder(plan, run, "distill")
    for job in ("distill", "evaluate.student", "export"):
        shutil.rmtree(job_folder(plan, run, job))
    launch = subprocess.Popen(
        [sys.executable, "-m", "polymath.runtime.cli", "launch", str(plan), "--run-dir", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ledger = Ledger(folder / "batches")
    deadline = time.monotonic() + SECONDS
    while not ledger.exists(2):
        assert launch.poll() is None and time.monotonic() < deadline, launch.communicate()[0]
        time.sleep(0.02)
    (acting,) = [engine for engine in _engines(plan, "distill") if "rollout" in engine["log"]]
    os.kill(acting["pid"], signal.SIGKILL)
    said = launch.communicate(timeout=SECONDS)[0]
    assert launch.returncode == 7, said
    assert "its process has ended" in said
    assert not any(_is_alive(engine["pid"]) for engine in _engines(plan, "distill"))
    published = {path: path.stat().st_mtime_ns for path in (folder / "batches").rglob("*") if path.is_file()}
    again = polymath("launch", plan, "--run-dir", run, seconds=SECONDS)
    assert again.returncode == 0, again.stderr[-4000:] + again.stdout[-2000:]
    _require_whole(plan)
    assert all(path.stat().st_mtime_ns == when for path, when in published.items())  # replayed, not rolled out again


def test_an_engine_that_cannot_load_its_model_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with ExitStack() as cleanup, pytest.raises(UserError, match=r"ended with status 1 before it was ready(.|\n)*nothing") as caught:
        start_worker(settings_of(tmp_path), tmp_path / "log", cleanup).wait()
    assert caught.value.exit_code == ExitCode.UNFIT
