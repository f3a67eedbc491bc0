"""A real trainer of one rank with experts in FP8: it learns, and what delayed scaling knows is part of a checkpoint."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from polymath.compiler import api
from polymath.compiler.experts import SCALED_FORMATS
from polymath.compiler.plan import Sources
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.jobs import JobContext
from polymath.runtime.stages.import_model import write_random_model
from polymath.runtime.trainer.model import amax_histories
from polymath.runtime.trainer.trainer import PolymathTrainer
from polymath.specs.model import Model
from test_guard import LENGTH, SHAPE, SMOKE, Scripted, _equal, _lines, _train, one_rank  # noqa: F401  (a fixture)


class Short(Scripted):
    steps = 10


def context_of(folder: Path, experts: str, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    """The SFT of the smoke recipe on one rank, from a random model."""
    mesh = [f"placement.{kind}.trainer.{name}=1" for kind in ("sft", "grpo", "distill") for name in ("devices", "expert")]
    rows = [f"student.sft.{name}={value}" for name, value in (("sequence_tokens", LENGTH), ("batch_sequences", 2), ("steps", 10))]
    settings = ("cluster.per_node=1", f"precision.experts={experts}", "checkpoint.every_steps=5")
    plan = api.compile(SMOKE, overrides=[*settings, *mesh, *rows])
    start = folder / "start"
    if not start.exists():
        tokenizer = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words"))
        write_random_model(start, dataclasses.replace(SHAPE, layers=2), tokenizer, seed=1)
        tokenizer.save(start)
    monkeypatch.setattr(JobContext, "input_folder", lambda _, name: start)
    sources = Sources(spec_folder="", runs="", urls={})
    found = JobContext(
        plan=plan, sources=sources, job=plan.job("sft"), run_dir=folder / "run", rank=0, world_size=1, barrier=lambda: None
    )
    found.folder.mkdir(parents=True)
    return found


def scales(trainer: PolymathTrainer) -> dict[str, torch.Tensor]:
    return {name: history.scale_EO for name, history in amax_histories(trainer.model_parts[0]).items()}


@pytest.mark.parametrize("name", SCALED_FORMATS)
def test_training_in_fp8_follows_training_in_float32(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for experts in ("{format: float32}", f"{{format: {name}, backend: reference}}"):
        folder = tmp_path / experts.strip("{}").replace(" ", "")
        folder.mkdir()
        context = context_of(folder, experts, monkeypatch)
        _train(context, Short())
        losses[experts] = [line["loss"] for line in _lines(context)]
    plain, scaled = losses.values()
    assert plain != scaled
    assert scaled == pytest.approx(plain, rel=0.02)


def test_a_resumed_run_has_the_delayed_scales_of_the_run_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = "{format: fp8_delayed, backend: reference}"
    whole = context_of(tmp_path, experts, monkeypatch)
    trainer = _train(whole, Short())
    for scale_EO in scales(trainer).values():
        assert (scale_EO != 1).any()
    lines, weights = _lines(whole), {name: one.clone() for name, one in trainer.model_parts[0].state_dict().items()}

    saved = tmp_path / "saved"
    shutil.copytree(whole.folder / "checkpoints" / "step-5", saved / "step-5")
    shutil.rmtree(tmp_path / "run")
    resumed = context_of(tmp_path, experts, monkeypatch)
    shutil.move(saved, resumed.folder / "checkpoints")
    again = _train(resumed, Short())
    assert [(line["step"], line["loss"]) for line in _lines(resumed)] == [(line["step"], line["loss"]) for line in lines[5:]]
    assert _equal(weights, again.model_parts[0].state_dict())
    assert _equal(scales(trainer), scales(again))
