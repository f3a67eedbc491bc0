"""Experts in FP8 by the reference: every layout trains nearly the same, a resumed run trains the same, and bfloat16 is near."""

import json
import shutil
from pathlib import Path

import pytest

from .polymath import REPOSITORY, compile_recipe, compile_smoke, job_folder, losses, torchrun

LAYOUTS = {"1 rank": (1, 1), "2 ranks FSDP2": (2, 1), "2 ranks EP 2": (2, 2)}
START = ("import", "synthesize")
# What a rank sees of an expert's rows, and in which order, decides the blocks of the weights' gradients, and with a scale per
# tensor every number of a product. Measured over 20 steps, loss 5.9 to 4.1: by blocks 1.2e-5, current 1.1e-4, delayed 5.7e-5;
# float32 differs by 1e-6. Each bound leaves a factor of ten. Delayed scales are resumed in unit/runtime/trainer, in seconds.
BOUNDS = {"fp8_blockwise": 1.5e-4, "fp8_current": 1e-3}


def plan_of(folder: Path, layout: str, name: str) -> tuple[Path, int]:
    """The smoke recipe on a layout, and its ranks."""
    ranks, expert = LAYOUTS[layout]
    folder.mkdir(parents=True)
    mesh = {"devices": ranks, "expert": expert}
    meshes = [f"placement.{kind}.trainer.{key}={value}" for kind in ("sft", "grpo", "distill") for key, value in mesh.items()]
    experts = f"precision.experts={{format: {name}, backend: reference}}"
    micro = "placement.distill.trainer.micro_batch=1"
    return compile_smoke(folder, f"cluster.per_node={ranks}", micro, experts, *meshes), ranks


def take_over(jobs: tuple[str, ...], source: tuple[Path, Path], target: tuple[Path, Path]) -> None:
    """Copy finished jobs of one run into another."""
    for job in jobs:
        shutil.copytree(job_folder(*source, job), job_folder(*target, job))


@pytest.mark.multi_rank
@pytest.mark.parametrize("name", BOUNDS)
def test_layouts_train_alike_and_a_resumed_run_exactly_as_it_would_have(name: str, tmp_path: Path) -> None:
    first: tuple[Path, Path] | None = None
    found: dict[str, list[float]] = {}
    for layout in LAYOUTS:
        plan, ranks = plan_of(tmp_path / layout, layout, name)
        run = (plan, tmp_path / layout / "run")
        if first is not None:
            take_over(START, first, run)
        finished = torchrun(plan, ranks, [*START, "sft"], run[1])
        assert finished.returncode == 0, finished.stderr[-3000:]
        first = first or run
        found[layout] = losses(job_folder(*run, "sft"))
    for layout, series in found.items():
        assert len(series) == 20
        assert series[0] == pytest.approx(found["1 rank"][0], abs=BOUNDS[name] / 5), layout
        assert series[-1] == pytest.approx(found["1 rank"][-1], abs=BOUNDS[name]), layout

    # The last layout again, from its checkpoint of step 15.
    assert first is not None
    resumed = (plan, tmp_path / "resumed")
    take_over(START, first, resumed)
    saved, again = job_folder(*run, "sft"), job_folder(*resumed, "sft")
    shutil.copytree(saved / "checkpoints" / "step-15", again / "checkpoints" / "step-15")
    finished = torchrun(plan, ranks, ["sft"], resumed[1])
    assert finished.returncode == 0, finished.stderr[-3000:]
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [16, 17, 18, 19, 20]
    assert [line["loss"] for line in lines] == found["2 ranks EP 2"][15:]


@pytest.mark.multi_rank
def test_the_loss_over_200_steps_of_the_small_recipe_is_within_two_per_cent_of_bfloat16s(tmp_path: Path) -> None:
    first: tuple[Path, Path] | None = None
    found: dict[str, list[float]] = {}
    for name, experts in {"bfloat16": "{format: bfloat16}", "fp8": "{format: fp8_blockwise, backend: reference}"}.items():
        folder = tmp_path / name
        folder.mkdir()
        recipe = REPOSITORY / "recipes" / "agents_a1_tiny.yaml"
        plan = compile_recipe(recipe, folder, "student.sft.steps=200", f"precision.experts={experts}")
        run = (plan, folder / "run")
        if first is not None:
            take_over(START, first, run)
        finished = torchrun(plan, 2, [*START, "sft"], run[1])
        assert finished.returncode == 0, finished.stderr[-3000:]
        first = first or run
        found[name] = losses(job_folder(*run, "sft"))
        assert len(found[name]) == 200
    # Measured: -0.9 %. The end alone says little: the loss halves within 50 steps, and float32 lies up to 16 % away (docs/fp8.md).
    of_fp8, of_bf16 = (sum(found[name]) / 200 for name in ("fp8", "bfloat16"))
    assert of_fp8 == pytest.approx(of_bf16, rel=0.02)
