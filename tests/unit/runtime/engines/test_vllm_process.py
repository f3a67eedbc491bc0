"""The client of a vLLM worker, against a worker that says what the test wants."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, load_tokenizer_folder
from polymath.runtime.engines.frames import Frame, receive, send
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.vllm import deal
from polymath.runtime.engines.vllm_launch import listening_socket
from polymath.runtime.engines.vllm_process import ProcessEngine
from polymath.specs.diagnostics import ExitCode, UserError

TOKENIZER = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:tiny-words"])
VOCABULARY = TOKENIZER.vocabulary_size
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)
Answer = Callable[[Frame], Frame | None]


class Worker:
    """Answers every connection; None hangs up."""

    def __init__(self, address: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Answer = lambda frame: Frame(words={})
        self.connections = 0
        self._listener = listening_socket(address)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    frame, _ = receive(connection)
                except (EOFError, OSError):
                    return
                self.asked.append(dict(frame.words))
                if frame.words["call"] == "hello":
                    words = {"vocabulary": VOCABULARY, "folder": "there", "policy_version": 0}
                    send(connection, Frame(words=words))
                    continue
                answer = self.answer(frame)
                if answer is None:
                    return
                send(connection, answer)


@pytest.fixture
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(tmp_path_factory.mktemp("w") / "s")


@pytest.fixture
def engine(worker: Worker, tmp_path: Path) -> Iterator[ProcessEngine]:
    address = Path(worker._listener.getsockname())
    engine = ProcessEngine(address, folder=tmp_path, tokenizer=TOKENIZER, log=tmp_path / "engine.log")
    yield engine
    engine.close()


def _generation(version: int) -> Answer:
    tensors = {
        "ids": torch.tensor([7]),
        "lengths": torch.tensor([1]),
        "logprobs": torch.tensor([-0.5]),
        "stopped": torch.tensor([False]),
    }
    return lambda frame: Frame(words={"policy_version": version}, tensors=tensors)


def test_more_tokens_are_asked_for_until_enough_of_them_may_be_written(worker: Worker, engine: ProcessEngine) -> None:
    invalid = sorted(TOKENIZER.invalid_ids)
    first = [*invalid, *(one for one in range(VOCABULARY) if one not in TOKENIZER.invalid_ids)]  # the invalid ones are most likely

    def answer(frame: Frame) -> Frame:
        ids = torch.tensor([[5, *first[: frame.words["top"]]]] * 2)
        return Frame(
            words={"policy_version": 0},
            tensors={"ids": ids, "logprobs": -torch.arange(ids.shape[1]).expand(2, -1) / 10, "lengths": torch.tensor([2])},
        )

    worker.answer = answer
    (top,) = engine.score_top_k([[1, 2, 3]], 4)
    assert top.ids_TK.tolist() == [first[len(invalid) : len(invalid) + 4]] * 2
    tops = [asked["top"] for asked in worker.asked if asked["call"] == "score"]
    assert tops[0] == 4 + 16 and all(after == min(2 * before, VOCABULARY) for before, after in itertools.pairwise(tops))


def test_an_engine_of_other_weights_than_the_trainer_gave_it_is_refused(worker: Worker, engine: ProcessEngine) -> None:
    worker.answer = _generation(0)
    assert engine.generate([[5]], limits=[1], sampling=PLAIN, stop_ids=[], seed=0)[0].ids == (7,)
    engine.policy_version = 1  # the trainer's update never arrived
    with pytest.raises(UserError, match="answered with policy version 0, and the trainer gave it version 1") as caught:
        engine.generate([[5]], limits=[1], sampling=PLAIN, stop_ids=[], seed=0)
    assert caught.value.exit_code == ExitCode.FAILED


def test_an_engine_that_hangs_up_interrupts_the_run_and_names_its_log(worker: Worker, engine: ProcessEngine) -> None:
    worker.answer = lambda frame: None
    with pytest.raises(UserError, match="its process has ended") as caught:
        engine.score_tokens([[5, 6]])
    assert caught.value.exit_code == ExitCode.INTERRUPTED and "engine.log" in caught.value.message


def test_connections_are_as_many_as_questions_at_once(worker: Worker, engine: ProcessEngine) -> None:
    worker.answer = _generation(0)
    for _ in range(20):
        engine.generate([[5]], limits=[1], sampling=PLAIN, stop_ids=[], seed=0)
    assert worker.connections == 1
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: engine.generate([[5]], limits=[1], sampling=PLAIN, stop_ids=[], seed=0), range(40)))
    assert worker.connections <= 4


def test_copies_are_dealt_to_models_which_take_turns_where_there_are_too_few() -> None:
    assert deal(["policy"], 2) == {"policy": [0, 1]}
    assert deal(["a", "b"], 2) == {"a": [0], "b": [1]}
    assert deal(["a", "b"], 5) == {"a": [0, 1], "b": [2, 3]}
    assert deal(["a", "b", "c"], 2) == {"a": [0, 1], "b": [0, 1], "c": [0, 1]}
