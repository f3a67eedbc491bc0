"""Every layout trains the same SFT, GRPO and distillation: one rank, FSDP2, expert and tensor parallelism and their products."""

import shutil
from pathlib import Path

import pytest

from .polymath import INSTALLED_TORCH, compile_smoke, job_folder, losses, step_values, torchrun

TRAINERS = ("sft", "grpo", "distill")
LAYOUTS = {  # ranks, expert degree, tensor degree
    "1 rank": (1, 1, 1),
    "2 ranks FSDP2": (2, 1, 1),
    "4 ranks FSDP2 + EP 2": (4, 2, 1),
    "2 ranks TP 2": (2, 1, 2),
    "2 ranks TP 2 + EP 2": (2, 2, 2),
    "4 ranks FSDP2 + TP 2": (4, 1, 2),
}


def _plan(folder: Path, ranks: int, expert: int, tensor: int) -> Path:
    folder.mkdir()
    mesh = {"devices": ranks, "expert": expert, "tensor": tensor}
    meshes = [f"placement.{kind}.trainer.{name}={value}" for kind in TRAINERS for name, value in mesh.items()]
    return compile_smoke(folder, f"cluster.per_node={ranks}", "placement.distill.trainer.micro_batch=1", *meshes)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run up to distillation, whose ledger the other layouts replay."""
    folder = tmp_path_factory.mktemp("parity") / "first"
    plan = _plan(folder, 2, 2, 1)
    jobs = ["import", "synthesize", "sft", "teachers.operator.1", "teachers.instructor.1", "distill"]
    finished = torchrun(plan, 2, jobs, folder / "run")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return plan, folder / "run"


@pytest.mark.multi_rank
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_trains_the_same_losses(first: tuple[Path, Path], layout: str, tmp_path: Path) -> None:
    ranks, expert, tensor = LAYOUTS[layout]
    if tensor > 1 and INSTALLED_TORCH != "2.13.0":
        pytest.skip("tensor parallelism runs with the backend of torch 2.13")
    plan = _plan(tmp_path / "other", ranks, expert, tensor)
    run_dir = tmp_path / "run"
    first_plan, first_run = first
    # The recipe digests are the same on every mesh, so finished jobs can be taken over as they are.
    for job in ("import", "synthesize", "sft"):
        assert job_folder(plan, run_dir, job).name == job_folder(first_plan, first_run, job).name
        shutil.copytree(job_folder(first_plan, first_run, job), job_folder(plan, run_dir, job))
    for job in ("teachers.instructor.1", "distill"):
        shutil.copytree(job_folder(first_plan, first_run, job) / "batches", job_folder(plan, run_dir, job) / "batches")

    # The operator's phase is SFT from the same start; the others replay the first layout's rollouts and scores.
    jobs = {"teachers.operator.1": 20, "teachers.instructor.1": 6, "distill": 20}
    finished = torchrun(plan, ranks, list(jobs), run_dir)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for job, steps in jobs.items():
        expected, found = (job_folder(*where, job) for where in ((first_plan, first_run), (plan, run_dir)))
        assert len(losses(found)) == len(losses(expected)) == steps
        assert losses(found)[0] == pytest.approx(losses(expected)[0], abs=1e-5), job
        assert losses(found)[-1] == pytest.approx(losses(expected)[-1], abs=1e-3), job
        # A gradient that is wrong in one layer alone shows here first.
        assert step_values(found, "grad_norm")[0] == pytest.approx(step_values(expected, "grad_norm")[0], rel=1e-4), job
