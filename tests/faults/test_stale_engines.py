"""Engines that answer with other weights than the trainer gave them: row W1 of the faults.

The engine is a process engine of the job as a rank sees it; what stands behind its socket is the stand-in for vLLM's worker, in a
thread of this process. Whatever happens, the batch that is trained on is that of an undisturbed run, or nothing is.
"""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from on_policy_runs import TOKENIZER, StubTrainer, distill_stage, make_run
from polymath.runtime.engines.endpoint import Endpoint
from polymath.runtime.engines.frames import Frame
from polymath.runtime.engines.protocol import Engine
from polymath.runtime.engines.shared import SharedEngine
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.vllm_http import HttpEngine
from polymath.runtime.engines.vllm_launch import listening_socket
from polymath.runtime.engines.vllm_process import ProcessEngine
from polymath.runtime.jobs import TOLD_ELSEWHERE, JobContext
from polymath.runtime.launch.events import read_events
from polymath.runtime.ledger import Ledger
from polymath.runtime.stages import on_policy
from polymath.runtime.stages.distill import DistillStage
from polymath.specs.diagnostics import ExitCode, UserError
from ranks import on_ranks
from scripted_engine import ScriptedEngine
from scripted_engine import served as served_over_http
from stand_in_worker import StandIn

STEPS = 3
UPDATE = 0.05  # of every weight after a step, at most


class Forgetful(StandIn):
    """A worker that may drop updates, or take up the weights before in the middle of a rollout."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.updates: list[str] = []  # what becomes of those to come: "taken", "dropped" or "unnoticed"
        self.answers: int | None = None  # turns until it falls back
        self._before = (self.engine, self.version)

    def answer(self, words: Any, tensors: Any) -> Frame:
        if words["call"] == "reload":
            fate = self.updates.pop(0) if self.updates else "taken"
            if fate != "taken":
                self.version = words["policy_version"] if fate == "unnoticed" else self.version
                return super().answer({"call": "hello"}, {})
            self._before = (self.engine, self.version)
            self.engine = TransformersEngine(
                Path(self._start), tokenizer_digest="", pad_id=0, invalid_ids=(), num_tokens=TOKENIZER.vocabulary_size
            )
        if words["call"] == "generate" and self.answers is not None and len(tensors["limits"]) == 1 and tensors["limits"] > 1:
            self.answers -= 1
            if self.answers < 0:
                self.answers = None
                self.engine, self.version = self._before
        return super().answer(words, tensors)

    def _open(self, folder: str) -> None:
        self._start = folder
        super()._open(folder)


@contextmanager
def served(worker: StandIn, address: Path) -> Iterator[ProcessEngine]:
    """The engine of a worker, whose thread ends with its connections."""
    with listening_socket(address) as listener, ExitStack() as closing:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=worker.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        engine = ProcessEngine(address, folder=Path(worker.folder), tokenizer=TOKENIZER, log=address.with_name("log"))
        closing.callback(engine.close)
        yield engine


Opened = Callable[[str], tuple[DistillStage, Forgetful, StubTrainer]]


def _stage(
    context: JobContext, models: Mapping[str, Path], engine: ProcessEngine | HttpEngine, patch: pytest.MonkeyPatch, **settings: Any
) -> tuple[DistillStage, StubTrainer]:
    original = on_policy.open_engines

    def opened(context: JobContext, role: Any, folders: Mapping[str, Path], tokenizer: Any) -> Mapping[str, Engine]:
        return {"policy": SharedEngine(engine, context, owns_copy=True)}

    patch.setattr(on_policy, "open_engines", opened)
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer, steps=STEPS, **settings)
    stage._actors.engine  # noqa: B018  # opened here, before another stage's is
    patch.setattr(on_policy, "open_engines", original)
    return stage, trainer


def _take(stage: DistillStage, trainer: StubTrainer, step: int) -> dict[str, float]:
    """A step as the trainer takes it, with a push of every weight that stands for the optimizer's; its metrics."""
    _, metrics = trainer.loss(stage, stage.next_batch(step))
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(UPDATE * torch.randn(parameter.shape, generator=generator))
    stage.finish_step()
    return metrics


def _samples(context: JobContext, index: int) -> list[Any]:
    return [replace(sample, dropped=0) for sample in Ledger(context.folder / "batches").read(index)]


def _require_same(context: JobContext, undisturbed: JobContext, index: int) -> None:
    """The same tokens, versions and supports, from the same weights."""
    pairs = list(zip(_samples(context, index), _samples(undisturbed, index), strict=True))
    assert pairs
    for one, other in pairs:
        assert (one.ids, one.written, one.status, one.reward) == (other.ids, other.written, other.status, other.reward)
        assert one.policy_version == other.policy_version
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert torch.allclose(one.support_logprobs_WK, other.support_logprobs_WK, atol=1e-5)


@pytest.fixture
def opened(tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a run by a name and the stage's settings: its stage, its worker and its trainer."""
    with ExitStack() as closing:

        def make(name: str, **settings: Any) -> tuple[DistillStage, Forgetful, StubTrainer]:
            context = make_run(tmp_path / name, models, monkeypatch)
            context.folder.mkdir(parents=True)
            worker = Forgetful(models["student"])
            engine = closing.enter_context(served(worker, tmp_path / name / "s"))
            stage, trainer = _stage(context, models, engine, monkeypatch, **settings)
            return stage, worker, trainer

        yield make


def _events(context: JobContext, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(context.run_dir) if event["event"] == name]


@pytest.mark.parametrize("fate", ["dropped", "unnoticed"])
def test_an_update_that_is_dropped_once_is_sent_again_and_changes_nothing(opened: Any, fate: str) -> None:
    """With the version that its answers tell, or without a sign of it, as over HTTP: then the gap on the canary shows it."""
    undisturbed, _, trainer = opened("undisturbed")
    for step in (1, 2):
        _take(undisturbed, trainer, step)
    stage, worker, trainer = opened("dropped")
    worker.updates = ["taken", fate]
    found = [_take(stage, trainer, step) for step in (1, 2)]
    context = stage._batches.context
    for index in range(2):
        _require_same(context, undisturbed._batches.context, index)
    assert [metrics["weights_sent_again"] for metrics in found] == [0.0, 1.0]
    assert stage._batches.totals(2)["weights_sent_again"] == 1 and undisturbed._batches.totals(2)["weights_sent_again"] == 0
    (event,) = _events(context, "weights_sent_again")
    assert (event["folder"], event["policy_version"]) == (context.job.folder, 1)
    (event,) = _events(context, "weights_differ")
    expected = "answered with policy version 0, and the trainer gave it version 1" if fate == "dropped" else "disagrees with"
    assert expected in event["cause"] and event["episodes_dropped"] == 0


def test_over_http_too_an_update_that_is_dropped_once_is_sent_again(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, taken = ScriptedEngine(models["student"]), iter([1.0, 0.0, 1.0])
    take = server._collective_rpc

    def take_share(question: dict[str, Any]) -> dict[str, Any]:
        server.share_of_update = next(taken)
        return take(question)

    server._collective_rpc = take_share  # type: ignore[method-assign]
    context = make_run(tmp_path / "run", models, monkeypatch)
    context.folder.mkdir(parents=True)
    with served_over_http(server) as url, subprocess.Popen(["sleep", "600"]) as process:
        address = Endpoint(host="127.0.0.1", port=int(url.split(":")[2].split("/")[0]), path="/v1", secure=False, key=None)
        engine = HttpEngine(
            address, pid=process.pid, log=tmp_path / "log", vocabulary=TOKENIZER.vocabulary_size, tokenizer=TOKENIZER
        )
        stage, trainer = _stage(context, models, engine, monkeypatch)
        found = [_take(stage, trainer, step)["weights_sent_again"] for step in (1, 2)]
        engine.close()
        process.kill()
    assert found == [0.0, 1.0] and next(taken, None) is None
    assert {sample.policy_version for sample in _samples(context, 1)} == {1}
    (event,) = _events(context, "weights_differ")
    assert "disagrees with the trainer on a canary" in event["cause"]


@pytest.mark.parametrize("lag", [0, 1])
def test_episodes_of_other_weights_are_dropped_counted_and_played_again(opened: Any, lag: int) -> None:
    undisturbed, _, trainer = opened("undisturbed", max_policy_lag=lag)
    for step in (1, 2):
        _take(undisturbed, trainer, step)
    stage, worker, trainer = opened("stale", max_policy_lag=lag)
    _take(stage, trainer, 1)
    worker.answers = 3  # in the batch of the second step, or with the lag in the one that is played beside it
    metrics = _take(stage, trainer, 2)
    context = stage._batches.context
    late = 1 + lag
    if lag:
        metrics = _take(stage, trainer, 3)
        versions = [sample.policy_version for sample in _samples(context, late)]
        assert set(versions) == {1, 2}  # the weights of version 1 are gone: the next are within what the lag allows
    else:
        _require_same(context, undisturbed._batches.context, late)
    dropped = sum(sample.dropped for sample in Ledger(context.folder / "batches").read(late))
    assert 1 <= dropped < 6
    assert metrics["dropped"] == stage._batches.totals(late + 1)["dropped"] == dropped
    (event,) = _events(context, "weights_differ")
    assert event["episodes_dropped"] == dropped and "answered with policy version" in event["cause"]
    assert len(_events(context, "weights_sent_again")) == 1


@pytest.mark.parametrize("fate", ["dropped", "unnoticed"])
def test_updates_that_never_arrive_stop_the_run_and_train_nothing(opened: Any, fate: str) -> None:
    stage, worker, trainer = opened("never")
    _take(stage, trainer, 1)
    worker.updates = [fate] * 10
    with pytest.raises(UserError, match="version 1") as caught:
        stage.next_batch(2)
    assert caught.value.exit_code == ExitCode.FAILED
    assert len(worker.updates) == 8  # once, and once more
    context = stage._batches.context
    assert not Ledger(context.folder / "batches").exists(1)
    assert len(_events(context, "weights_sent_again")) == 1 and len(_events(context, "weights_differ")) == 2


def test_an_engine_that_falls_back_again_stops_the_run(opened: Any) -> None:
    stage, worker, trainer = opened("again")
    _take(stage, trainer, 1)
    worker.answers = 3
    take = worker.answer

    def relapse(words: Any, tensors: Any) -> Frame:
        if words["call"] == "reload" and words["policy_version"] == 1:
            worker.answers = 1
        return take(words, tensors)

    worker.answer = relapse  # type: ignore[method-assign]
    with pytest.raises(UserError, match="answered with policy version 0, and the trainer gave it version 1") as caught:
        stage.next_batch(2)
    assert caught.value.exit_code == ExitCode.FAILED
    assert not Ledger(stage._batches.context.folder / "batches").exists(1)


def _two_ranks(rank: int, root: str, models: Mapping[str, Path], fates: list[str], answers: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        context = make_run(Path(root) / "run", models, patch, world_size=2)
        context = replace(context, rank=rank, barrier=dist.barrier, any_rank=_any_rank)
        context.folder.mkdir(parents=True, exist_ok=True)
        worker = Forgetful(models["student"])
        with served(worker, Path(root) / f"s{rank}") as engine:
            stage, trainer = _stage(context, models, engine, patch)
            _take(stage, trainer, 1)
            if rank == 1:
                worker.updates, worker.answers = list(fates), answers
            try:
                _take(stage, trainer, 2)
                said = ""
            except UserError as error:
                assert error.exit_code == ExitCode.FAILED
                said = error.message
    (Path(root) / f"said.{rank}.json").write_text(json.dumps(said))


def _any_rank(flag: bool) -> bool:
    found = torch.tensor(float(flag))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


@pytest.mark.multi_rank
@pytest.mark.parametrize(
    ("fates", "answers"), [(["dropped"], None), ([], 1), (["dropped"] * 9, None)], ids=["once", "in the middle", "for good"]
)
def test_two_ranks_of_which_one_has_a_stale_engine_end_together(
    tmp_path: Path, models: Mapping[str, Path], fates: list[str], answers: int | None
) -> None:
    on_ranks(_two_ranks, tmp_path, str(tmp_path), models, fates, answers)
    said = [json.loads((tmp_path / f"said.{rank}.json").read_text()) for rank in range(2)]
    (ledger,) = (Ledger(path) for path in (tmp_path / "run" / "jobs").glob("*/batches"))
    if len(fates) > 1:
        assert TOLD_ELSEWHERE in said[0] and "answered with policy version 0" in said[1]
        assert not ledger.exists(1)
        return
    assert said == ["", ""]
    assert {sample.policy_version for sample in ledger.read(1)} == {1}
    dropped = [sample.dropped for sample in ledger.read(1)]
    assert bool(sum(dropped)) == (answers is not None) and not all(dropped)
