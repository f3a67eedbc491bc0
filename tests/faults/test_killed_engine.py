"""An engine's process that is killed in the middle of a rollout: the step is rolled out again, or replayed if it was published."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from on_policy_runs import DISTILL, StubTrainer, distill_stage, make_run
from polymath.runtime.engines import endpoint
from polymath.runtime.engines.protocol import EngineSilent
from polymath.runtime.engines.served_engine import ServedEngine
from polymath.runtime.ledger import Ledger
from polymath.runtime.stages.distill import DistillStage
from polymath.specs.machine import Engines, Service

TEACHERS_PLAY = dataclasses.replace(DISTILL, rollouts="teacher")
SERVER = Path(__file__).parents[1] / "scripted_engine.py"
DELAY_SECONDS = 0.05  # of every answer, so that there is a middle
START_SECONDS = 120


class Process:
    """The server in a process of its own, on one port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, SERVER, self._folder, str(self.port), str(DELAY_SECONDS)]
        self._process = subprocess.Popen(list(map(str, words)))

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self._process is not None and self._process.poll() is None
                time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def process(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.05)
    found = Process(models["a"])
    monkeypatch.setenv("KILLED_URL", f"http://127.0.0.1:{found.port}/v1")
    found.start()
    found.wait()
    yield found
    found.kill()


def _kill_in_the_middle(process: Process, stage: DistillStage) -> threading.Thread:
    """A thread that kills the process once some tokens were generated."""
    engines = [engine for _, engine in stage._teachers.items() if isinstance(engine, ServedEngine)]

    def kill() -> None:
        while not any(engine.traffic.generated_tokens for engine in engines):
            time.sleep(0.001)
        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def _files(ledger: Ledger) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(ledger.path(0).iterdir())}


def test_the_step_is_rolled_out_again_or_replayed_and_comes_out_the_same(
    process: Process, models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"student": models["student"], "a": models["a"], "b": models["a"]}
    trainer = StubTrainer(models["student"])

    def stage_in(name: str, patience_seconds: float) -> DistillStage:
        (tmp_path / name).mkdir(exist_ok=True)
        served = Service(url_env="KILLED_URL", model="model", patience_seconds=patience_seconds)
        engines = Engines(scorer="vllm", teachers={"a": served, "b": served})
        return distill_stage(make_run(tmp_path / name, models, monkeypatch, engines=engines), same, trainer, TEACHERS_PLAY)

    undisturbed = stage_in("undisturbed", 60)
    undisturbed.next_batch(1)
    expected = _files(undisturbed._batches.ledger)

    # It comes back: the step goes on with the same requests.
    waited = stage_in("waited", 120)
    killed = _kill_in_the_middle(process, waited)
    back = threading.Thread(target=lambda: (killed.join(), process.start()))
    back.start()
    waited.next_batch(1)
    back.join()
    assert _files(waited._batches.ledger) == expected

    # It does not: nothing is published, and a later launch rolls the step out anew.
    given_up = stage_in("given_up", 3)
    killed = _kill_in_the_middle(process, given_up)
    with pytest.raises(EngineSilent) as caught:
        given_up.next_batch(1)
    killed.join()
    assert caught.value.exit_code == 7 and not given_up._batches.ledger.exists(0)
    process.start()
    process.wait()
    again = stage_in("given_up", 60)
    batch = again.next_batch(1)
    assert _files(again._batches.ledger) == expected

    # Once it is published, no engine is asked.
    replayed = stage_in("given_up", 3)
    process.kill()
    loss = trainer.loss(replayed, replayed.next_batch(1))[0]
    assert loss == trainer.loss(again, batch)[0] == pytest.approx(loss)
