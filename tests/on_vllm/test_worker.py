"""What our worker around vLLM tells while it works, and what becomes of one that hangs."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from conformance.engines import Models, lacks, make_models, settings_of
from polymath.runtime.engines import vllm_process
from polymath.runtime.engines.protocol import EngineSilent, SamplingSettings
from polymath.runtime.engines.vllm import Copy, connect, start_worker
from polymath.runtime.engines.vllm_launch import PYTHON
from polymath.runtime.engines.vllm_process import ProcessEngine
from polymath.specs.diagnostics import ExitCode
from stand_in_worker import interpreter

from . import chatty_worker
from .runs import is_alive

pytestmark = pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or "")

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
PROMPT = [5, 6, 7]
TOKENS = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"), tied=True)


@pytest.fixture(scope="module")
def worker(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Copy, ProcessEngine]]:
    root = tmp_path_factory.mktemp("worker")
    with ExitStack() as cleanup, pytest.MonkeyPatch.context() as patch:
        patch.setenv(PYTHON, str(interpreter(root, chatty_worker.__file__)))
        copy = start_worker(settings_of(models.folders["first"]), root / "engine.log", cleanup)
        copy.wait()
        engine = connect(copy.facts, models.folders["first"], models.tokenizer)
        assert isinstance(engine, ProcessEngine)
        cleanup.callback(engine.close)
        yield copy, engine


def test_a_worker_tells_that_it_works_and_its_answers_are_the_same(worker: tuple[Copy, ProcessEngine], models: Models) -> None:
    engine = worker[1]
    before = engine.traffic.received_bytes
    (written,) = engine.generate([PROMPT], limits=[TOKENS], sampling=GREEDY, stop_ids=[], seed=0)
    assert engine.traffic.received_bytes - before > TOKENS * 50  # a word after every step
    expected = models.logprobs("first", [*PROMPT, *written.ids])[len(PROMPT) - 1 : -1].max(dim=-1).values
    assert written.logprobs == pytest.approx(expected.tolist(), abs=1e-5)
    (scores_T,) = engine.score_tokens([[*PROMPT, *written.ids]])
    assert scores_T[len(PROMPT) - 1 :].tolist() == pytest.approx(written.logprobs, abs=1e-5)


def test_a_worker_that_hangs_is_given_up_and_ended(worker: tuple[Copy, ProcessEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped as a whole: nothing in it runs any more, and it is there all the same."""
    copy, engine = worker
    monkeypatch.setattr(vllm_process, "PATIENCE", replace(vllm_process.PATIENCE, total_seconds=2.0))
    os.killpg(copy.process.pid, signal.SIGSTOP)
    with pytest.raises(EngineSilent, match="no step of it in 2 seconds") as caught:
        engine.generate([PROMPT], limits=[TOKENS], sampling=GREEDY, stop_ids=[], seed=0)
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert is_alive(copy.process.pid)
    copy.process.close()
    assert not is_alive(copy.process.pid)
