"""`polymath sweep` on the smoke recipe: interrupted, it goes on, and rows share what they have in common."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .polymath import INSTALLED_TORCH, SMOKE, TIMEOUT_SECONDS, polymath

CHANGES = {  # of the recipe, so that it takes seconds and one rank
    "runs: ../runs": "runs: runs",
    "accelerator: cpu, per_node: 2": f"accelerator: cpu, per_node: 1, software: {{torch: {INSTALLED_TORCH}}}",
    "devices: 2, expert: 2": "devices: 1, expert: 1",
    "steps: 20": "steps: 4",
    "steps: 3": "steps: 1",
    "every_steps: 5": "every_steps: 1",
    "episodes: 40": "episodes: 4",
}
SWEEP = """polymath_sweep: 1
name: small
base: smoke.yaml
seeds: [11]
rows:
  routed: {}
  k2:
    change:
      student: {distill: {loss: {support: {top_k: 2}}}}
      evaluate: {models: [student], continued_sft: false}
"""


@pytest.mark.multi_rank
def test_a_sweep_that_was_interrupted_goes_on_and_shares_jobs(tmp_path: Path) -> None:
    text = SMOKE.read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "smoke.yaml").write_text(text)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    folder = tmp_path / "runs" / "small"
    jobs = folder / "seed-11" / "jobs"

    command = [sys.executable, "-m", "polymath.runtime.cli", "sweep", str(tmp_path / "sweep.yaml")]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list(jobs.glob("sft-*/checkpoints/step-*")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=TIMEOUT_SECONDS)
    assert first.returncode == 7, said
    assert "to go on: polymath sweep" in said
    assert not json.loads((folder / "sweep.json").read_text())["complete"]

    done = polymath("sweep", tmp_path / "sweep.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (folder / "logs" / "routed.seed-11.log").read_text()
    assert "goes on from step" in log or "sft: finished earlier" in log
    assert len(list(jobs.glob("sft-*"))) == 1 and len(list(jobs.glob("distill-*"))) == 2
    figures = json.loads((folder / "sweep.json").read_text())
    assert figures["complete"]
    assert [row["trained_tokens"] > 0 for row in figures["rows"]] == [True, True]
    assert all(run["minutes"] > 0 for run in figures["runs"])
    assert "| k2 | 11 |" in (folder / "sweep.md").read_text()

    finished = {path: path.stat().st_mtime_ns for path in jobs.glob("*/DONE.json")}
    again = polymath("sweep", tmp_path / "sweep.yaml", "--json")
    assert json.loads(again.stdout)["ok"] and "2 of 2 runs finished earlier" in again.stderr
    assert finished == {path: path.stat().st_mtime_ns for path in jobs.glob("*/DONE.json")}
