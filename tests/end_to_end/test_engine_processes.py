"""Engines in processes of their own, from the command line, with a stand-in for vLLM (tests/on_vllm has the real one)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from polymath.runtime.engines.vllm_launch import PYTHON
from polymath.runtime.ledger import Ledger
from stand_in_worker import interpreter

from .polymath import REPOSITORY, compile_recipe, job_folder, polymath

RECIPE = REPOSITORY / "recipes" / "smoke_vllm.yaml"
STEPS = 4
SECONDS = 1200
SMALL = (
    "cluster.per_node=3",
    "placement={sft: {trainer: {devices: 1}}, grpo: {trainer: {devices: 1}, rollout: {devices: 1}},"
    " distill: {trainer: {devices: 1}, rollout: {devices: 1}, scorer: {devices: 1}}, evaluate: {rollout: {devices: 1}}}",
    "student.sft.steps=4",
    f"student.distill.steps={STEPS}",
    "student.distill.prompts_per_step.per_domain=2",
    "teachers.operator.phases[0].steps=3",
    "teachers.instructor.phases[0].steps=1",
    "evaluate.episodes=4",
)


@pytest.mark.multi_rank
def test_an_engine_that_is_killed_interrupts_a_run_which_then_goes_on_to_its_end(tmp_path: Path) -> None:
    plan, run = compile_recipe(RECIPE, tmp_path, *SMALL), tmp_path / "run"
    environment = {PYTHON: str(interpreter(tmp_path))}
    folder = job_folder(plan, run, "distill")
    ledger = Ledger(folder / "batches")
    launch = subprocess.Popen(
        [sys.executable, "-m", "polymath.runtime.cli", "launch", str(plan), "--run-dir", str(run)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + SECONDS
    while not ledger.exists(0):
        assert launch.poll() is None and time.monotonic() < deadline, launch.communicate()[0]
        time.sleep(0.01)
    engines = [json.loads(path.read_text()) for path in sorted((folder / "engines").glob("*.json"))]
    assert len(engines) == 2  # one acts, and both teachers take turns on the other
    os.kill(next(engine["pid"] for engine in engines if "rollout" in engine["log"]), signal.SIGKILL)
    said = launch.communicate(timeout=SECONDS)[0]
    assert launch.returncode == 7, said
    assert "its process has ended" in said
    assert not any(Path(f"/proc/{engine['pid']}").exists() for engine in engines)
    published = {path: path.stat().st_mtime_ns for path in (folder / "batches").rglob("*") if path.is_file()}

    again = polymath("launch", plan, "--run-dir", run, environment=environment, seconds=SECONDS)
    assert again.returncode == 0, again.stderr[-4000:] + again.stdout[-2000:]
    assert all(path.stat().st_mtime_ns == when for path, when in published.items())  # replayed, not rolled out again
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    for index in range(STEPS):
        assert {sample.policy_version for sample in ledger.read(index)} == {index}
    assert max(line.get("parity_gap_max", 0.0) for line in metrics) < 1e-4
    assert not (folder / "weights").exists()
