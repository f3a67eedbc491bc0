"""Teachers that take turns on an engine of the job: an engine that holds another teacher than it is asked for trains nobody."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import TOKENIZER, StubTrainer, distill_stage
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.jobs import JobContext
from polymath.runtime.launch.events import read_events
from polymath.runtime.ledger import Ledger
from polymath.runtime.teachers import service
from polymath.specs.diagnostics import ExitCode, UserError


class OneEngine:
    """Holds one model at a time. A switch that is `lost` leaves the model that was there, without a word."""

    def __init__(self) -> None:
        self.holds, self.switches, self.lost = "", 0, False

    def ask_for(self, name: str) -> str:
        """The model that answers whoever asks for this one."""
        if self.holds != name:
            self.switches += 1
            if not self.lost:
                self.holds = name
        return self.holds


class Turn(TransformersEngine):
    """A teacher's engine, as a rank sees it: the questions of all teachers go to the same one."""

    def __init__(self, name: str, engine: OneEngine, models: Mapping[str, Path]) -> None:
        super().__init__(
            models[name],
            tokenizer_digest=TOKENIZER.digest,
            pad_id=TOKENIZER.pad_id,
            invalid_ids=TOKENIZER.invalid_ids,
            num_tokens=len(TOKENIZER.hf),
        )
        self.capabilities = dataclasses.replace(self.capabilities, embedded=False)
        self.name, self.engine, self.turns = name, engine, {name: self}

    def score_top_k(self, sequences: Sequence[Sequence[int]], k: int) -> Any:
        return TransformersEngine.score_top_k(self.turns[self.engine.ask_for(self.name)], sequences, k)

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> Any:
        return TransformersEngine.score_tokens(self.turns[self.engine.ask_for(self.name)], sequences)


@pytest.fixture
def engine(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> OneEngine:
    found = OneEngine()

    def opened(context: Any, role: Any, folders: Mapping[str, Path], tokenizer: Any) -> Mapping[str, Turn]:
        turns = {name: Turn(name, found, folders) for name in folders}
        for turn in turns.values():
            turn.turns = turns
        return turns

    monkeypatch.setattr(service, "open_engines", opened)
    return found


def test_an_engine_that_keeps_the_teacher_before_trains_nobody(
    engine: OneEngine, context: JobContext, models: Mapping[str, Path]
) -> None:
    trainer = StubTrainer(models["student"])
    stage, ledger = distill_stage(context, models, trainer), Ledger(context.folder / "batches")
    stage.next_batch(1)
    before = [one.clone() for one in trainer.model.state_dict().values()]
    engine.lost = True
    with pytest.raises(UserError, match=r"is no longer its checkpoint: .* step 2 is thrown away") as caught:
        stage.next_batch(2)
    assert caught.value.exit_code == ExitCode.FAILED
    assert ledger.exists(0) and not ledger.exists(1)
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.state_dict().values(), strict=True))
    (event,) = (event for event in read_events(context.run_dir) if event["event"] == "wrong_teacher")
    assert (event["steps"], event["trained"]) == ([2], [])


def test_the_canary_is_asked_before_the_next_teacher_takes_its_turn(
    engine: OneEngine, context: JobContext, models: Mapping[str, Path]
) -> None:
    stage = distill_stage(context, models, StubTrainer(models["student"]))
    engine.holds, engine.switches = "", 0
    stage.next_batch(1)
    assert engine.switches == 2  # one for each teacher


def test_an_engine_that_never_was_the_checkpoint_is_refused_before_training(
    engine: OneEngine, context: JobContext, models: Mapping[str, Path]
) -> None:
    engine.holds, engine.lost = "a", True
    with pytest.raises(UserError, match=r"the engine of teacher `b` does not say what .* says") as caught:
        distill_stage(context, models, StubTrainer(models["student"]))
    assert caught.value.exit_code == ExitCode.FAILED


def test_a_checkpoint_too_large_to_be_asked_here_is_held_to_its_first_answer(
    engine: OneEngine, context: JobContext, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LARGEST_PARAMETERS", 1)
    stage = distill_stage(context, models, StubTrainer(models["student"]))
    stage.next_batch(1)
    engine.lost = True
    with pytest.raises(UserError, match="is no longer its checkpoint"):
        stage.next_batch(2)
