"""What only torch 2.15 can do: torchtitan's default SPMD backend, and pipeline stages. `make test-newest` runs this there.

The layouts' own parity tests are those of `tests/end_to_end/test_parity.py`: their plans are compiled for the torch that is
installed, so that in this environment they use the default backend.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from end_to_end.polymath import INSTALLED_TORCH, compile_smoke, job_folder, torchrun
from polymath.compiler.plan import read_plan

pytestmark = pytest.mark.skipif(INSTALLED_TORCH == "2.13.0", reason="needs torch 2.15: make test-newest")

KINDS = ("sft", "grpo", "distill")
WORKER = Path(__file__).parent / "stages_worker.py"
UNTIED = "model.shape.tied_embeddings=false"  # tied ones would have to lie on both stages


def plan_for(folder: Path, ranks: int, **degrees: int) -> Path:
    folder.mkdir()
    settings = [f"placement.{kind}.trainer.devices={ranks}" for kind in KINDS]
    settings += [f"placement.{kind}.trainer.expert=1" for kind in KINDS]
    settings += [f"placement.sft.trainer.{name}={value}" for name, value in {"micro_batch": 2, **degrees}.items()]
    return compile_smoke(folder, f"cluster.per_node={ranks}", UNTIED, *settings)


def trained(plan: Path, ranks: int, start: Path, out: Path) -> list[dict[str, Any]]:
    """What every rank saw."""
    out.mkdir()
    elastic = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *elastic, str(WORKER), str(plan), "sft", str(start), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from."""
    folder = tmp_path_factory.mktemp("start") / "one"
    plan = plan_for(folder, 1)
    finished = torchrun(plan, 1, ["import"], folder / "run")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return job_folder(plan, folder / "run", "import") / "model"


def test_the_plan_asks_for_the_default_backend(tmp_path: Path) -> None:
    plan = read_plan(plan_for(tmp_path / "two", 2))
    assert {one.value for job in plan.jobs for one in job.titan if one.path == "parallelism.spmd_backend"} == {"spmd_types"}


@pytest.mark.multi_rank
def test_two_pipeline_stages_train_as_one_rank_does(start: Path, tmp_path: Path) -> None:
    (whole,) = trained(plan_for(tmp_path / "whole", 1), 1, start, tmp_path / "out1")
    stages = trained(plan_for(tmp_path / "stages", 2, pipeline=2, fsdp=1), 2, start, tmp_path / "out2")
    assert [one["pipeline"] for one in stages] == [2, 2] and {one["backend"] for one in stages} == {"spmd_types"}
    for one in stages:
        assert [step["grad_norm"] for step in one["steps"]] == pytest.approx(
            [step["grad_norm"] for step in whole["steps"]], rel=1e-3
        )
    last = stages[-1]["steps"]  # the loss lives on the last stage
    assert [step["loss"] for step in last] == pytest.approx([step["loss"] for step in whole["steps"]], abs=1e-4)
