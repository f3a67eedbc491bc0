"""Promises of rollouts that are one step behind: recorded, side by side with training, and the same after a resume."""

import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import StubTrainer, distill_stage, make_run
from polymath.runtime.engines.protocol import EngineSilent
from polymath.runtime.ledger import Ledger
from polymath.runtime.stages.distill import DistillStage
from polymath.specs.diagnostics import UserError


def _train(stage: DistillStage, trainer: StubTrainer, steps: range) -> list[float]:
    """Take steps as the trainer does, with an update that stands for the optimizer's; the loss of each."""
    losses = []
    for step in steps:
        loss, _ = trainer.loss(stage, stage.next_batch(step))
        losses.append(loss)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
        stage.finish_step()
    return losses


def _files(ledger: Ledger, index: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(ledger.path(index).iterdir())}


@pytest.mark.parametrize(("lag", "versions"), [(0, [0, 1, 2]), (1, [0, 0, 1])])
def test_every_sample_tells_which_weights_played_it(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, lag: int, versions: list[int]
) -> None:
    context, trainer = make_run(tmp_path, models, monkeypatch), StubTrainer(models["student"])
    _train(distill_stage(context, models, trainer, max_policy_lag=lag), trainer, range(1, 4))
    found = [{sample.policy_version for sample in Ledger(context.folder / "batches").read(index)} for index in range(3)]
    assert found == [{version} for version in versions]


def test_a_run_that_resumes_with_the_checkpoint_and_the_ledger_of_any_step_goes_on_identically(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trainer = make_run(tmp_path / "whole", models, monkeypatch), StubTrainer(models["student"])
    losses, checkpoints = [], []
    stage = distill_stage(context, models, trainer, max_policy_lag=1, steps=4)
    for step in range(1, 5):
        losses += _train(stage, trainer, range(step, step + 1))
        checkpoints.append({name: one.clone() for name, one in trainer.model.state_dict().items()})
        shutil.copytree(context.folder / "batches", tmp_path / f"ledger-{step}")
    for step in range(1, 4):
        resumed = make_run(tmp_path / f"resumed-{step}", models, monkeypatch)
        shutil.copytree(tmp_path / f"ledger-{step}", resumed.folder / "batches")
        trainer.model.load_state_dict(checkpoints[step - 1])
        assert (
            _train(distill_stage(resumed, models, trainer, max_policy_lag=1, steps=4), trainer, range(step + 1, 5)) == losses[step:]
        )
        for index in range(4):
            assert _files(Ledger(resumed.folder / "batches"), index) == _files(Ledger(context.folder / "batches"), index)


def test_the_next_batch_is_played_while_this_one_trains_and_published_after_it(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trainer = make_run(tmp_path, models, monkeypatch), StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer, max_policy_lag=1)
    trained, players, play = threading.Event(), [], stage._actors.play

    def watched(*arguments: Any) -> Any:
        players.append(threading.current_thread())
        if len(players) == 2:
            assert trained.wait(30)  # the next batch is not over before this one has trained
        return play(*arguments)

    monkeypatch.setattr(stage._actors, "play", watched)
    trainer.loss(stage, stage.next_batch(1))
    assert not stage._batches.ledger.exists(1)
    trained.set()
    stage.finish_step()
    assert stage._batches.ledger.exists(1)
    assert players[0] is threading.main_thread() and players[1] is not threading.main_thread()


def test_an_engine_that_is_gone_meanwhile_ends_the_run_after_the_step_and_publishes_nothing(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trainer = make_run(tmp_path, models, monkeypatch), StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer, max_policy_lag=1)
    play = stage._actors.play

    def gone(*_: Any) -> Any:
        raise EngineSilent("the engine", "connection refused")

    stage.next_batch(1)
    stage.finish_step()
    monkeypatch.setattr(stage._actors, "play", gone)
    stage.next_batch(2)
    with pytest.raises(EngineSilent):
        stage.finish_step()
    assert not stage._batches.ledger.exists(2)
    monkeypatch.setattr(stage._actors, "play", play)
    stage.next_batch(3)
    assert stage._batches.ledger.exists(2)


def test_older_rollouts_than_allowed_are_refused(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trainer = make_run(tmp_path, models, monkeypatch), StubTrainer(models["student"])
    _train(distill_stage(context, models, trainer, max_policy_lag=1), trainer, range(1, 3))
    with pytest.raises(UserError, match="was rolled out by policy version 0, and 1 is training") as caught:
        distill_stage(context, models, trainer, max_policy_lag=0).next_batch(2)
    assert caught.value.exit_code == 4
