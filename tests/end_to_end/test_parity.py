"""Every layout trains the same: one rank, FSDP2, expert parallelism and both, for SFT and for distillation from one ledger."""

import shutil
from pathlib import Path

import pytest

from .polymath import compile_smoke, job_folder, losses, torchrun

TRAINERS = ("sft", "grpo", "distill")
LAYOUTS = {"1 rank": (1, 1), "2 ranks FSDP2": (2, 1), "2 ranks EP 2": (2, 2), "4 ranks FSDP2 + EP 2": (4, 2)}


def _plan(folder: Path, ranks: int, expert: int) -> Path:
    folder.mkdir()
    mesh = {"devices": ranks, "expert": expert}
    meshes = [f"placement.{kind}.trainer.{name}={value}" for kind in TRAINERS for name, value in mesh.items()]
    return compile_smoke(folder, f"cluster.per_node={ranks}", "placement.distill.trainer.micro_batch=1", *meshes)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run up to distillation, whose ledger the other layouts replay."""
    folder = tmp_path_factory.mktemp("parity") / "first"
    plan = _plan(folder, 2, 2)
    jobs = ["import", "synthesize", "sft", "teachers.operator.1", "teachers.instructor.1", "distill"]
    finished = torchrun(plan, 2, jobs, folder / "run")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return plan, folder / "run"


@pytest.mark.multi_rank
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "2 ranks EP 2"])
def test_a_layout_trains_the_same_losses(first: tuple[Path, Path], layout: str, tmp_path: Path) -> None:
    ranks, expert = LAYOUTS[layout]
    plan = _plan(tmp_path / "other", ranks, expert)
    run_dir = tmp_path / "run"
    first_plan, first_run = first
    # The recipe digests are the same on every mesh, so finished jobs can be taken over as they are.
    for job in ("import", "synthesize", "sft", "teachers.instructor.1"):
        assert job_folder(plan, run_dir, job).name == job_folder(first_plan, first_run, job).name
        shutil.copytree(job_folder(first_plan, first_run, job), job_folder(plan, run_dir, job))
    distill = job_folder(plan, run_dir, "distill")
    shutil.copytree(job_folder(first_plan, first_run, "distill") / "batches", distill / "batches")

    # The operator's phase is SFT from the same start; distillation replays the first layout's rollouts and scores.
    finished = torchrun(plan, ranks, ["teachers.operator.1", "distill"], run_dir)
    assert finished.returncode == 0, finished.stderr[-3000:]
    for job in ("teachers.operator.1", "distill"):
        expected, found = (losses(job_folder(*where, job)) for where in ((first_plan, first_run), (plan, run_dir)))
        assert len(found) == len(expected) == 20
        assert found[0] == pytest.approx(expected[0], abs=1e-5), job
        assert found[-1] == pytest.approx(expected[-1], abs=1e-3), job
