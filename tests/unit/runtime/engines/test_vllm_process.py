"""The client of a vLLM worker, against a worker that says what the test wants."""

import dataclasses
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, load_tokenizer_folder
from polymath.runtime.engines import vllm_process
from polymath.runtime.engines.frames import WORKING, Frame, receive, send
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.vllm import deal
from polymath.runtime.engines.vllm_launch import listening_socket
from polymath.runtime.engines.vllm_process import ProcessEngine
from polymath.runtime.launch.events import ServiceWaits, wait_lines
from polymath.specs.diagnostics import ExitCode, UserError

TOKENIZER = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:tiny-words"])
VOCABULARY = TOKENIZER.vocabulary_size
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)
PATIENCE_SECONDS, PAUSE_SECONDS = 1.5, 0.1
Answer = Callable[[Frame], Frame | bytes | None]
ROW = {"ids": [7, 8], "lengths": [2], "logprobs": [-0.5, -1.5], "stopped": [True]}
SCORES = {"ids": [[6, 4], [7, 4]], "lengths": [2], "logprobs": [[-0.5, -0.1], [-2.0, -0.2]]}
FORMATS = {"ids": torch.int64, "lengths": torch.int64, "logprobs": torch.float32, "stopped": torch.bool}


class Worker:
    """Answers every connection, with bytes as they are; None hangs up."""

    def __init__(self, address: Path) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Answer = lambda frame: Frame(words={})
        self.connections = 0
        self.working = 0  # words that it makes steps, before every answer
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
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                    continue
                if answer is None:
                    return
                for _ in range(self.working):
                    time.sleep(PAUSE_SECONDS)
                    send(connection, Frame(words=WORKING))
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
        ids = torch.tensor([[own, *first[: frame.words["top"]]] for own in (2, 3)])
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


def _tensors(parts: dict[str, Any], **changes: Any) -> dict[str, torch.Tensor]:
    """Those of an answer; a change is values, a tensor, or None for one that is not there."""
    changed = {name: value for name, value in {**parts, **changes}.items() if value is not None}
    return {
        name: value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=FORMATS.get(name))
        for name, value in changed.items()
    }


def _generate(engine: ProcessEngine) -> Any:
    return engine.generate([[5]], limits=[3], sampling=PLAIN, stop_ids=[8], seed=0)


def _score(engine: ProcessEngine) -> Any:
    return engine._scores([[5, 6, 7]], 1)


def _refused(engine: ProcessEngine, ask: Callable[[ProcessEngine], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ask(engine)
    assert caught.value.exit_code == ExitCode.FAILED
    assert "gives no answer that can be used" in caught.value.message and "engine.log" in (caught.value.fix or "")


NAN, INFINITY = float("nan"), float("inf")
BROKEN_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"logprobs": [-0.5, NAN]}, "no finite number of at most 0: nan"),
    "infinite": ({"logprobs": [-INFINITY, -0.5]}, "no finite number of at most 0: -inf"),
    "positive": ({"logprobs": [0.5, -0.5]}, "no finite number of at most 0: 0.5"),
    "a token that the model has not": ({"ids": [VOCABULARY, 8]}, f"{VOCABULARY} is none of the model's"),
    "a negative token": ({"ids": [-1, 8]}, "-1 is none of the model's"),
    "too long": ({"ids": [7, 7, 7, 8], "lengths": [4], "logprobs": [-1.0] * 4}, "4 ids .* limit 3"),
    "empty": ({"ids": [], "lengths": [0], "logprobs": []}, "0 ids"),
    "not stopped": ({"stopped": [False]}, "cut off"),
    "stopped by nothing": ({"ids": [8, 7]}, "stopped"),
    "more log-probabilities": ({"logprobs": [-0.5] * 3}, "rows of 2 tokens, and 3 logprobs"),
    "lengths of more tokens": ({"lengths": [3]}, "rows of 3 tokens, and 2 ids"),
    "a negative length": ({"lengths": [-1]}, "rows of -1 tokens"),
    "more rows": ({"lengths": [1, 1], "stopped": [False, True]}, "2 rows and 2 ends of them, and 1 were"),
    "fewer verdicts": ({"stopped": []}, "1 rows and 0"),
    "another name": ({"logprobs": None, "logits": [-0.5, -0.5]}, "logits float32"),
    "a tensor more": ({"extra": [1]}, "extra int64"),
    "another format": ({"ids": torch.tensor([7.0, 8.0])}, "ids float32"),
    "half precision": ({"logprobs": torch.tensor([-0.5, -0.5], dtype=torch.bfloat16)}, "logprobs bfloat16"),
    "another form": ({"ids": [[7, 8]]}, r"ids int64 \[2\]"),
}
BROKEN_SCORES: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"logprobs": [[-0.5, -0.1], [NAN, -0.2]]}, "no finite number of at most 0: nan"),
    "infinite": ({"logprobs": [[-0.5, -0.1], [-INFINITY, -0.2]]}, "no finite number of at most 0: -inf"),
    "positive": ({"logprobs": [[-0.5, 0.1], [-2.0, -0.2]]}, "no finite number of at most 0: 0.1"),
    "shifted by one": ({"ids": [[5, 4], [6, 4]]}, "not of the tokens that stand there"),
    "a token that the model has not": ({"ids": [[6, 4], [7, VOCABULARY]]}, f"{VOCABULARY} is none of the model's"),
    "a negative token": ({"ids": [[6, -4], [7, 4]]}, "-4 is none of the model's"),
    "short": ({"ids": [[6, 4]], "logprobs": [[-0.5, -0.1]]}, "scores of shape"),
    "of fewer tokens": ({"ids": [[6], [7]], "logprobs": [[-0.5], [-0.5]]}, "scores of shape"),
    "of another sequence": ({"lengths": [1, 1]}, "scores of .* positions"),
    "another name": ({"logprobs": None, "logits": [[-0.5, -0.1]] * 2}, "logits float32"),
    "another format": ({"logprobs": torch.zeros(2, 2, dtype=torch.float64)}, "logprobs float64"),
}


@pytest.mark.parametrize("fault", BROKEN_ROWS)
def test_a_continuation_of_another_form_ends_the_run_with_one_message(worker: Worker, engine: ProcessEngine, fault: str) -> None:
    changes, message = BROKEN_ROWS[fault]
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(ROW))
    assert _generate(engine)[0].ids == (7, 8)
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(ROW, **changes))
    _refused(engine, _generate, message)
    assert engine.traffic.generated_tokens == 2


def test_lengths_that_only_sum_to_what_came_end_the_run(worker: Worker, engine: ProcessEngine) -> None:
    rows = _tensors(ROW, lengths=[-1, 3], stopped=[False, True])
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=rows)
    two = lambda engine: engine.generate([[5]] * 2, limits=[3] * 2, sampling=PLAIN, stop_ids=[8], seed=0)  # noqa: E731
    _refused(engine, two, "rows of 2 tokens")


@pytest.mark.parametrize("fault", BROKEN_SCORES)
def test_scores_of_another_form_end_the_run_with_one_message(worker: Worker, engine: ProcessEngine, fault: str) -> None:
    changes, message = BROKEN_SCORES[fault]
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(SCORES))
    assert _score(engine)[1].tolist() == torch.tensor(SCORES["logprobs"]).tolist()
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(SCORES, **changes))
    _refused(engine, _score, message)


@pytest.mark.parametrize("words", [{}, {"policy_version": "0"}, {"policy_version": True}, {"policy_version": None}])
def test_an_answer_that_tells_no_policy_version_ends_the_run(worker: Worker, engine: ProcessEngine, words: dict[str, Any]) -> None:
    worker.answer = lambda frame: Frame(words=words, tensors=_tensors(ROW))
    _refused(engine, _generate, "without `policy_version`")


def test_what_is_no_frame_ends_the_run_and_a_huge_one_is_not_read(worker: Worker, engine: ProcessEngine) -> None:
    for answer, message in (
        ((2**60).to_bytes(8, "little"), f"a frame of {2**60} bytes"),
        ((2**20).to_bytes(8, "little"), f"a frame of {2**20} bytes"),  # a frame may be as large, an answer of three tokens not
        ((5).to_bytes(8, "little") + b"<html", "that is none"),
    ):
        worker.answer = lambda frame, answer=answer: answer  # type: ignore[misc]
        _refused(engine, _generate, message)
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(ROW))
    assert _generate(engine)[0].ids == (7, 8)  # over a connection that nothing is left in


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = dataclasses.replace(vllm_process.PATIENCE, total_seconds=PATIENCE_SECONDS)
    monkeypatch.setattr(vllm_process, "PATIENCE", patience)
    monkeypatch.setattr(vllm_process, "QUIET_SECONDS", PATIENCE_SECONDS / 5)


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_hangs_is_given_up_and_its_wait_is_shown(worker: Worker, tmp_path: Path) -> None:
    watch, hold = ServiceWaits(tmp_path, "job", "the rollout engine"), threading.Event()
    address = Path(worker._listener.getsockname())
    engine = ProcessEngine(address, folder=tmp_path, tokenizer=TOKENIZER, log=tmp_path / "engine.log", watch=watch)

    def hang(frame: Frame) -> None:
        hold.wait(60)

    worker.answer = hang
    with pytest.raises(UserError, match=r"no step of it in 1\.5 seconds \(its log: .*engine.log") as caught:
        _generate(engine)
    hold.set()
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    (line,) = wait_lines(tmp_path, "job")  # as `polymath status` shows it
    assert re.fullmatch(r"waiting for the rollout engine, \d+ s: it makes no step", line)
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(ROW))
    assert _generate(engine)[0].ids == (7, 8) and wait_lines(tmp_path, "job") == []


@pytest.mark.usefixtures("impatient")
def test_half_a_frame_of_an_engine_that_hangs_is_given_up(worker: Worker, engine: ProcessEngine) -> None:
    worker.answer = lambda frame: (1000).to_bytes(8, "little") + b"half"
    with pytest.raises(UserError, match=r"no step of it in 1\.5 seconds") as caught:
        _generate(engine)
    assert caught.value.exit_code == ExitCode.INTERRUPTED


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_makes_steps_is_waited_for_however_long_it_takes(worker: Worker, engine: ProcessEngine) -> None:
    worker.working = 18  # longer than an engine without a sign of life is waited for
    worker.answer = lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(ROW))
    assert _generate(engine)[0].ids == (7, 8)
    assert _score_after(worker, engine)


def _score_after(worker: Worker, engine: ProcessEngine) -> bool:
    """Whether the connection is still in step with its questions."""
    worker.working, worker.answer = 0, lambda frame: Frame(words={"policy_version": 0}, tensors=_tensors(SCORES))
    return _score(engine)[0].tolist() == SCORES["ids"]
