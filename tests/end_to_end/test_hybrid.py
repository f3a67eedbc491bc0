"""The Qwen3.5 hybrid trains the same on one rank and on two with expert parallelism, and leaves the same model behind."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from .polymath import REPOSITORY, compile_recipe, job_folder, losses, torchrun

RECIPE = REPOSITORY / "recipes" / "qwen3_5_tiny.yaml"
STEPS = 6


def _train(folder: Path, ranks: int, expert: int) -> Path:
    """The SFT job's folder."""
    folder.mkdir()
    meshes = [
        f"placement.{kind}.trainer.{name}={value}"
        for kind in ("sft", "grpo", "distill")
        for name, value in (("devices", ranks), ("expert", expert))
    ]
    sources = [f"domains.{domain}.trajectories[0].synthesize=40" for domain in ("instructions", "science", "tools")]
    plan = compile_recipe(RECIPE, folder, f"cluster.per_node={ranks}", f"student.sft.steps={STEPS}", *meshes, *sources)
    finished = torchrun(plan, ranks, ["import", "synthesize", "sft"], folder / "run")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return job_folder(plan, folder / "run", "sft")


@pytest.mark.multi_rank
def test_a_layout_trains_the_same_hybrid(tmp_path: Path) -> None:
    one, two = _train(tmp_path / "one", 1, 1), _train(tmp_path / "two", 2, 2)
    expected, found = losses(one), losses(two)
    assert len(found) == len(expected) == STEPS
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[-1] == pytest.approx(expected[-1], abs=1e-3) and found[-1] < found[0] - 0.1

    models = [AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32) for folder in (one, two)]
    weights = [dict(model.named_parameters()) for model in models]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-3, rtol=0, msg=name)
