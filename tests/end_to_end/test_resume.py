"""A run killed anywhere goes on where it stopped and ends with the same weights; so does a run on another day."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from polymath.compiler.plan import read_plan
from polymath.runtime.ledger import Ledger
from transformers import AutoModelForCausalLM

from .polymath import INSTALLED_TORCH, compile_smoke, job_folder, losses, polymath, torchrun, weights

MODELS = ("import", "sft", "teachers.operator.1", "teachers.instructor.1", "distill", "sft_continued")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    plan = compile_smoke(folder)
    finished = polymath("launch", plan)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return plan, folder / "runs" / "smoke"


def _descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in (task / "children").read_text().split()]
    return [one for child in children for one in [*_descendants(child), child]]


def _kill_when(plan: Path, run_dir: Path, reached: Callable[[Path], bool]) -> None:
    """Launch, wait for the run to get somewhere, and SIGKILL the launcher and everything under it."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", "polymath.runtime.cli", "launch", str(plan)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 200
    while not reached(run_dir):
        assert launcher.poll() is None, f"the run ended before it could be killed: {launcher.communicate()[0].decode()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for pid in [*_descendants(launcher.pid), launcher.pid]:
        os.kill(pid, signal.SIGKILL)
    launcher.communicate()


@pytest.mark.multi_rank
def test_a_run_killed_three_times_ends_with_the_same_weights_as_one_that_was_not(
    uninterrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    plan, run_dir = compile_smoke(tmp_path), tmp_path / "runs" / "smoke"

    def in_sft(run: Path) -> bool:
        return (job_folder(plan, run, "sft") / "checkpoints" / "step-10").exists()

    def in_the_middle_of_a_rollout_batch(run: Path) -> bool:
        return (job_folder(plan, run, "teachers.instructor.1") / "batches" / "000001").exists()

    def in_distillation(run: Path) -> bool:
        return (job_folder(plan, run, "distill") / "batches" / "000012").exists()

    for reached in (in_sft, in_the_middle_of_a_rollout_batch, in_distillation):
        _kill_when(plan, run_dir, reached)
    finished = polymath("launch", plan)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = finished.stdout + finished.stderr
    assert "sft: finished earlier" in said
    assert "distill: goes on from step 10" in said

    whole_plan, whole_run = uninterrupted
    for job in MODELS:
        killed, whole = job_folder(plan, run_dir, job), job_folder(whole_plan, whole_run, job)
        assert weights(killed) == weights(whole), job
        if job != "import":
            assert losses(killed) == losses(whole), job
    assert (run_dir / "scoreboard.json").read_bytes() == (whole_run / "scoreboard.json").read_bytes()


@pytest.mark.multi_rank
@pytest.mark.skipif(INSTALLED_TORCH != "2.13.0", reason="tensor parallelism runs with the backend of torch 2.13")
def test_a_tensor_parallel_job_killed_in_the_middle_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    plans: dict[Path, Path] = {}
    for folder in (whole, killed):
        folder.mkdir()
        plans[folder] = compile_smoke(folder, "placement.sft.trainer.tensor=2", "placement.sft.trainer.expert=1")
    finished = torchrun(plans[whole], 2, ["import", "synthesize", "sft"], whole / "run")
    assert finished.returncode == 0, finished.stderr[-3000:]

    run_dir = killed / "runs" / "smoke"
    _kill_when(plans[killed], run_dir, lambda run: (job_folder(plans[killed], run, "sft") / "checkpoints" / "step-10").exists())
    finished = torchrun(plans[killed], 2, ["sft"], run_dir)
    assert finished.returncode == 0, finished.stderr[-3000:]

    ends = [job_folder(plans[whole], whole / "run", "sft"), job_folder(plans[killed], run_dir, "sft")]
    assert weights(ends[0]) == weights(ends[1]) and losses(ends[0]) == losses(ends[1])


@pytest.mark.multi_rank
def test_a_finished_run_is_reused_whole(uninterrupted: tuple[Path, Path]) -> None:
    plan, run_dir = uninterrupted
    before = {job.id: (run_dir / "jobs" / job.folder / "DONE.json").stat().st_mtime_ns for job in read_plan(plan).jobs}
    finished = polymath("launch", plan)
    assert finished.returncode == 0, finished.stderr
    assert before == {job.id: (run_dir / "jobs" / job.folder / "DONE.json").stat().st_mtime_ns for job in read_plan(plan).jobs}


@pytest.mark.multi_rank
def test_the_student_starts_distillation_as_the_sft_checkpoint(uninterrupted: tuple[Path, Path]) -> None:
    plan, run_dir = uninterrupted
    sft = AutoModelForCausalLM.from_pretrained(job_folder(plan, run_dir, "sft") / "model", dtype=torch.float32).eval()
    samples = Ledger(job_folder(plan, run_dir, "distill") / "batches").read(0)
    assert {sample.policy_version for sample in samples} == {0}
    for sample in samples:
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            logprobs = sft(ids[:, :-1]).logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze()
        written = torch.tensor(sample.written[1:])
        torch.testing.assert_close(logprobs[written], torch.tensor(sample.logprobs[1:])[written], atol=1e-5, rtol=0)
