"""Promises of the judge's client, against a real server on loopback: a verdict, or an error that names the endpoint."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.engines import endpoint, json_chat, judge
from polymath.runtime.engines.endpoint import Unreadable, endpoint_of
from polymath.runtime.engines.judge import JudgeClient, at_once
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import Service
from scripted_service import completion, send, serving

JUDGE = Service(url_env="JUDGE_URL", model="a-judge", key_env="JUDGE_KEY")
KEY = "sk-very-secret"
QUESTION = [{"role": "user", "content": "is it?"}]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.001)


def _client(url: str, key: str = KEY) -> JudgeClient:
    return JudgeClient(endpoint_of(JUDGE, "engines.judge", {"JUDGE_URL": url, "JUDGE_KEY": key}), JUDGE.model)


def _read(value: Any) -> bool:
    if value not in ({"correct": True}, {"correct": False}):
        raise Unreadable("not a verdict")
    return value["correct"]


class Script:
    """Answers one after the other, the last one for ever."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers: Sequence[tuple[int, bytes]] = answers
        self.questions: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []

    def __call__(self, handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        status, body = self.answers[min(len(self.questions), len(self.answers) - 1)]
        self.questions.append(question)
        self.keys.append(handler.headers["Authorization"])
        self.paths.append(handler.path)
        send(handler, body, status)


def _failure(script: Any, **changes: Any) -> UserError:
    with serving(script) as url, pytest.raises(UserError) as caught:
        _client(url, **changes).ask(QUESTION, _read)
    assert caught.value.exit_code == ExitCode.FAILED
    assert f"{url}/chat/completions" in caught.value.message
    assert KEY not in str(caught.value)
    return caught.value


def test_a_verdict_is_what_the_model_said(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((200, completion({"correct": True})), (200, completion({"correct": False})))
    with serving(script) as url:
        assert [_client(url).ask(QUESTION, _read) for _ in range(2)] == [True, False]
    assert script.questions[0]["model"] == "a-judge" and script.questions[0]["messages"] == QUESTION
    assert script.questions[0]["temperature"] == 0
    assert script.keys == [f"Bearer {KEY}"] * 2 and script.paths[0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    "first",
    [
        (500, b"the model is loading"),
        (429, b"slow down"),
        (200, b"<html>welcome to the gateway</html>"),
        (200, completion({"correct": True})[:-9]),
        (200, b'{"choices": []}'),
        (200, completion("I think it is right.")),
        (200, completion('{"correct": tr')),
        (200, completion({"correct": "yes"})),
        (200, completion("[" * 100_000)),
    ],
)
def test_what_is_no_verdict_is_asked_for_again(first: tuple[int, bytes]) -> None:
    script = Script(first, (200, completion({"correct": True})))
    with serving(script) as url:
        assert _client(url).ask(QUESTION, _read) is True
    assert len(script.questions) == 2


def test_the_attempts_are_bounded_and_the_last_cause_is_named() -> None:
    script = Script((500, b"out of memory"))
    assert "status 500: 'out of memory'" in _failure(script).message
    assert len(script.questions) == judge.PATIENCE.attempts
    assert "not a chat completion: '<html>" in _failure(Script((200, b"<html>"))).message


def test_a_wrong_key_is_refused_at_once_and_never_shown() -> None:
    script = Script((401, f"no such key: {KEY}".encode()))
    assert "status 401: 'no such key: ***'" in _failure(script).message
    assert len(script.questions) == 1


def test_a_redirect_is_not_followed() -> None:
    script = Script((302, b""))
    assert "status 302" in _failure(script).message and len(script.questions) == 1


def test_an_answer_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_chat, "MOST_BYTES", 10_000)
    assert "more than 10000 bytes" in _failure(Script((200, b" " * 200_000 + completion({"correct": True})))).message


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    body = completion({"correct": True})
    failure = _failure(lambda handler, _: send(handler, body, promised=len(body) + 40))
    assert "broke off" in failure.message or "IncompleteRead" in failure.message


def test_an_endpoint_that_does_not_answer_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PATIENCE", dataclasses.replace(judge.PATIENCE, answer_seconds=0.1))
    asked = threading.Semaphore(0)

    def silent(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        asked.release()
        time.sleep(0.5)

    assert "Timeout" in _failure(silent).message
    assert asked.acquire(timeout=1)


def test_nobody_there_names_the_endpoint() -> None:
    with serving(Script((200, b""))) as url:
        pass
    with pytest.raises(
        UserError, match=r"the judge at http://127\.0\.0\.1:\d+/v1/chat/completions gave no verdict: ConnectionRefused"
    ):
        _client(url).ask(QUESTION, _read)


def test_a_host_that_cannot_be_a_name_is_no_traceback() -> None:
    remote = Service(url_env="JUDGE_URL", model="a-judge", key_env="JUDGE_KEY", remote=True)
    environment = {"JUDGE_URL": f"http://{'a' * 70}.example/v1", "JUDGE_KEY": KEY}
    client = JudgeClient(endpoint_of(remote, "engines.judge", environment), remote.model)
    with pytest.raises(UserError, match="gave no verdict"):
        client.ask(QUESTION, _read)


def test_only_a_few_questions_are_in_flight_and_the_first_error_ends_the_rest() -> None:
    lock, flying, most, begun = threading.Lock(), 0, 0, 0

    def answer(number: int) -> None:
        nonlocal flying, most, begun
        with lock:
            flying, begun = flying + 1, begun + 1
            most = max(most, flying)
        time.sleep(0.005)
        with lock:
            flying -= 1
        if number == 40:
            raise UserError("enough", exit_code=ExitCode.FAILED)

    at_once(answer, range(32))
    assert most <= judge.AT_ONCE and begun == 32
    with pytest.raises(UserError, match="enough"):
        at_once(answer, range(40, 400))
    assert begun < 32 + 360


@pytest.mark.parametrize(
    ("url", "key", "says"),
    [
        ("", KEY, "JUDGE_URL is not set"),
        ("127.0.0.1:8000", KEY, "is not an http"),
        ("file:///etc/passwd", KEY, "is not an http"),
        ("http://[::1", KEY, "is not a URL"),
        ("http://host:port/v1", KEY, "is not a URL"),
        (f"http://me:{KEY}@127.0.0.1/v1", KEY, "holds more than an address"),
        (f"http://127.0.0.1/v1?key={KEY}", KEY, "holds more than an address"),
        ("http://judge.example.com/v1", KEY, "is of another machine, judge.example.com"),
        ("http://127.0.0.1.example.com/v1", KEY, "is of another machine"),
        ("http://10.0.0.1/v1", KEY, "is of another machine"),
        ("http://127.0.0.1/v1", "", "JUDGE_KEY is not set"),
        ("http://127.0.0.1/v1", "two\r\nHost: elsewhere", "JUDGE_KEY is not set, or is no key"),
    ],
)
def test_an_environment_that_names_no_endpoint_of_this_machine_is_refused(url: str, key: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        endpoint_of(JUDGE, "engines.judge", {"JUDGE_URL": url, "JUDGE_KEY": key})
    assert caught.value.exit_code == ExitCode.UNFIT
    assert says in caught.value.message and KEY not in str(caught.value)


def test_another_machine_is_asked_with_consent_and_an_endpoint_never_shows_its_key() -> None:
    remote = Service(url_env="JUDGE_URL", model="a-judge", key_env="JUDGE_KEY", remote=True)
    found = endpoint_of(remote, "engines.judge", {"JUDGE_URL": "https://judge.example.com/v1/", "JUDGE_KEY": KEY})
    assert str(found) == "https://judge.example.com:443/v1"
    assert KEY not in repr(found)


def test_another_machine_is_never_asked_without_a_key() -> None:
    remote = Service(url_env="JUDGE_URL", model="a-judge", remote=True)
    with pytest.raises(UserError, match="another machine is asked without a key") as caught:
        endpoint_of(remote, "engines.judge", {"JUDGE_URL": "https://judge.example.com/v1"})
    assert caught.value.exit_code == ExitCode.UNFIT


def test_a_key_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    environment = {"JUDGE_URL": "http://127.0.0.1:1/v1", "JUDGE_KEY_FILE": str(tmp_path / "key")}
    assert endpoint_of(JUDGE, "engines.judge", environment).key == KEY
    environment["JUDGE_KEY_FILE"] = str(tmp_path / "none")
    with pytest.raises(UserError, match="JUDGE_KEY_FILE names cannot be read"):
        endpoint_of(JUDGE, "engines.judge", environment)
