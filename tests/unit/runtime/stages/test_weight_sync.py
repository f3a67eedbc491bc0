"""An engine outside the trainer acts with the trainer's weights, or training stops before anything is rolled out."""

import dataclasses
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import TOKENIZER, StubTrainer, distill_stage
from polymath.runtime.engines import shared as shared_engine
from polymath.runtime.engines.protocol import EngineSilent
from polymath.runtime.engines.shared import SharedEngine, write_weights
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.vllm_transfer import Transfer
from polymath.runtime.engines.weights import Weights
from polymath.runtime.jobs import JobContext
from polymath.runtime.stages import on_policy
from polymath.specs.diagnostics import ExitCode, UserError
from safetensors.torch import load_file
from weight_streams import read_folder


class Elsewhere(TransformersEngine):
    """An engine that takes weights from a folder. `fault` is what goes wrong without a word."""

    fault: str | None = None

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            tokenizer_digest=TOKENIZER.digest,
            pad_id=TOKENIZER.pad_id,
            invalid_ids=TOKENIZER.invalid_ids,
            num_tokens=len(TOKENIZER.hf),
        )
        self.capabilities = dataclasses.replace(self.capabilities, embedded=False, expert_choices=False)
        self.folders: list[Path] = []

    def reload(self, folder: Path, *, policy_version: int) -> None:
        self.folders.append(folder)
        if self.fault == "gone":
            raise EngineSilent("the engine", "the engine is gone")
        weights = read_folder(folder)
        if self.fault == "dropped":
            weights = {name: parameter.clone() for name, parameter in self._model.named_parameters()}
        if self.fault == "half":
            weights |= {name: parameter.clone() for name, parameter in self._model.named_parameters() if "experts" in name}
        if self.fault == "broken":
            raise RuntimeError("no weights")
        self.load_weights(Weights([weights]), policy_version=policy_version)

    def generate(self, prompts: Any, **settings: Any) -> Any:
        written = super().generate(prompts, **settings)
        if self.fault == "stale prefix":  # what is written follows from keys and values of other weights
            return [dataclasses.replace(one, logprobs=tuple(logprob - 0.3 for logprob in one.logprobs)) for one in written]
        return written


@pytest.fixture
def elsewhere(context: JobContext, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    engine = Elsewhere(models["student"])
    original = on_policy.open_engines

    def opened(context: JobContext, role: Any, folders: Mapping[str, Path], tokenizer: Any) -> Mapping[str, Any]:
        if role == "rollout":
            return {"policy": SharedEngine(engine, context, owns_copy=True)}
        return original(context, role, folders, tokenizer)

    monkeypatch.setattr(on_policy, "open_engines", opened)
    return engine


def _other_weights(trainer: StubTrainer) -> None:
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def test_weights_travel_by_a_folder_and_the_gap_is_told(
    context: JobContext, models: Mapping[str, Path], elsewhere: Elsewhere
) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer)
    for step in (1, 2):
        _other_weights(trainer)
        batch = stage.next_batch(step)
        _, metrics = trainer.loss(stage, batch)
        assert metrics["parity_gap_max"] < 1e-5
        assert {sample.policy_version for sample in stage._batches.ledger.read(step - 1)} == {step - 1}
    assert elsewhere.folders == [context.folder / "weights"] * 2
    assert not (context.folder / "weights").exists()


@pytest.mark.parametrize("fault", ["dropped", "half", "stale prefix"])
def test_a_sync_that_failed_without_a_word_stops_the_run(
    fault: str, context: JobContext, models: Mapping[str, Path], elsewhere: Elsewhere
) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer)
    stage.next_batch(1)
    _other_weights(trainer)
    elsewhere.fault = fault
    with pytest.raises(UserError, match=r"policy version 1 .* it disagrees with the trainer") as caught:
        stage.next_batch(2)
    assert caught.value.exit_code == ExitCode.FAILED
    assert not stage._batches.ledger.exists(1)


def test_a_version_is_told_only_of_weights_that_are_all_there(
    context: JobContext, models: Mapping[str, Path], elsewhere: Elsewhere
) -> None:
    shared = SharedEngine(elsewhere, context, owns_copy=True)
    elsewhere.fault = "broken"
    with pytest.raises(RuntimeError):
        shared.load_weights(StubTrainer(models["a"]).weights(), policy_version=3)
    assert shared.policy_version == elsewhere.policy_version == 0


def test_a_rank_without_a_copy_of_its_own_leaves_the_loading_to_the_one_that_has_it(
    context: JobContext, models: Mapping[str, Path], elsewhere: Elsewhere
) -> None:
    second = dataclasses.replace(context, rank=1, world_size=2)
    SharedEngine(elsewhere, second, owns_copy=False).load_weights(Weights([]), policy_version=3)
    assert elsewhere.folders == [] and elsewhere.policy_version == 3  # told, because every rank waited for the one that loads


def test_an_engine_that_is_gone_while_it_loads_is_told_to_every_rank_at_the_same_place(
    context: JobContext, models: Mapping[str, Path], elsewhere: Elsewhere
) -> None:
    """What two ranks agree on, played by two threads: the one that loads, and one that only waits."""
    flags: list[bool] = []
    both = threading.Barrier(2, timeout=20)

    def any_rank(flag: bool) -> bool:
        flags.append(flag)
        both.wait()
        return any(flags)

    elsewhere.fault = "gone"
    ranks = [dataclasses.replace(context, rank=rank, world_size=2, barrier=both.wait, any_rank=any_rank) for rank in (0, 1)]
    shared = [SharedEngine(elsewhere, one, owns_copy=one.rank == 0) for one in ranks]
    weights = StubTrainer(models["a"]).weights()
    with ThreadPoolExecutor(2) as pool:
        loading = [pool.submit(one.load_weights, weights, policy_version=3) for one in shared]
        found = [one.exception() for one in loading]
    assert all(isinstance(one, EngineSilent) for one in found)
    assert "the engine is gone" in str(found[0]) and "of another rank" in str(found[1])
    assert [one.policy_version for one in shared] == [0, 0]


def test_a_folder_of_bounded_files_holds_every_weight(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_engine, "FILE_BYTES", 50_000)
    weights = dict(StubTrainer(models["student"]).weights())
    write_weights(Weights([weights]), tmp_path / "weights")
    written = read_folder(tmp_path / "weights")
    assert written.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.items())
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in (tmp_path / "weights").glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) <= 50_000


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_sends_nothing_or_no_more_gathers_with_the_others_to_the_end(
    rank: int, context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NCCL only the first rank sends, and here a copy dies after the first weight."""
    flags: list[bool] = []
    gathered: list[str] = []

    def any_rank(flag: bool) -> bool:
        flags.append(flag)
        return True

    def converted(unit: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        gathered.extend(unit)
        return unit

    one = dataclasses.replace(context, rank=rank, world_size=2, any_rank=any_rank)
    transfer = Transfer("nccl", one, [], 1)

    def send() -> None:
        next(transfer._source.current)
        raise EngineSilent("the engine", "the engine is gone")

    monkeypatch.setattr(transfer, "_send_by_vllm", send)
    with pytest.raises(EngineSilent):
        transfer(Weights([{name: torch.ones(1)} for name in "abc"], converted), 1)
    assert gathered == ["a", "b", "c"]
    assert flags == [rank == 0]
