"""vLLM's server, as a job starts it: nobody without the key asks it anything, and beyond loopback it serves its model alone."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance.engines import Models, lacks, make_models, settings_of
from polymath.runtime.engines.outside import Outside
from polymath.runtime.engines.shared import write_weights
from polymath.runtime.engines.vllm import Copy, connect, start_server
from polymath.runtime.engines.vllm_http import HttpEngine
from polymath.runtime.engines.vllm_server import ROUTES
from polymath.runtime.launch.process import descendants

pytestmark = pytest.mark.skipif(lacks("http") is not None, reason=lacks("http") or "")


KEY = "of-those-outside"


def _other_address() -> str:
    """An address of this machine that is not loopback's; where it has none, another than the server's own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.2"
        return probe.getsockname()[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"), tied=True)


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """With a second socket, for those outside."""
    root = tmp_path_factory.mktemp("server")
    with ExitStack() as cleanup:
        with Outside(host=_other_address(), port=0, key=KEY, variable="").bound(0) as listener:
            copy = start_server(settings_of(models.folders["first"]), root / "server.log", cleanup, outside=(listener, KEY))
            copy.facts["outside"] = listener.getsockname()
        copy.wait()
        yield copy


@pytest.fixture(scope="module")
def engine(server: Copy, models: Models) -> Iterator[HttpEngine]:
    """As the job that started the server asks it."""
    found = connect(server.facts, models.folders["first"], models.tokenizer)
    assert isinstance(found, HttpEngine)
    yield found
    found.close()


def _asked(
    address: tuple[str, int], method: str, path: str, key: str | None, question: Any, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """Status and answer; the answer of a route that is there may be no JSON."""
    connection = http.client.HTTPConnection(*address, timeout=120)
    authorization = {"Authorization": f"Bearer {key}"} if key is not None else {}
    body = None if question is None else json.dumps(question)
    connection.request(method, path, body, {"Content-Type": "application/json", **authorization, **(headers or {})})
    answer = connection.getresponse()
    found = answer.read()
    connection.close()
    is_json = answer.getheader("Content-Type") == "application/json"
    return answer.status, json.loads(found) if found and is_json else None


def _ask(server: Copy, method: str, path: str, key: str | None) -> int:
    question = {"method": "sync_weights", "args": ["/nowhere"]}
    return _asked(("127.0.0.1", server.facts["port"]), method, path, key, question)[0]


def _ask_outside(
    server: Copy, method: str, path: str, *, key: str | None = KEY, question: Any = None, **more: Any
) -> tuple[int, Any]:
    return _asked(server.facts["outside"], method, path, key, question, **more)


@pytest.mark.parametrize("key", [None, "", "another"])
def test_no_route_but_health_answers_without_the_key(server: Copy, key: str | None) -> None:
    paths = (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/collective_rpc"), ("POST", "/reset_prefix_cache"))
    for method, path in (
        *paths,
        ("GET", "/docs"),
        ("GET", "/metrics"),
        ("POST", "//collective_rpc"),
        ("OPTIONS", "/collective_rpc"),
    ):
        assert _ask(server, method, path, key) == 401, path
    assert _ask(server, "GET", "/health", key) == 200


def test_the_key_opens_it_and_stands_neither_in_a_command_nor_in_the_log(server: Copy) -> None:
    key_file = Path(server.facts["key"])
    key = key_file.read_text()
    assert _ask(server, "GET", "/v1/models", key) == 200
    assert key_file.stat().st_mode & 0o077 == 0 and key_file.parent.stat().st_mode & 0o077 == 0
    for pid in [server.process.pid, *descendants(server.process.pid)]:
        assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert key not in server.process.log.read_text()


def test_it_listens_on_loopback_and_on_the_address_it_was_given_alone(server: Copy) -> None:
    own = {inode for pid in [server.process.pid, *descendants(server.process.pid)] for inode in _sockets(pid)}
    listening = [
        (local, inode)
        for table in ("tcp", "tcp6")
        for _, local, _, state, *_, inode in (
            (*line.split()[:4], line.split()[9]) for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        )
        if state == "0A" and inode in own
    ]
    places = {(local.partition(":")[0], int(local.rpartition(":")[2], 16)) for local, _ in listening}
    host, port = server.facts["outside"]
    outside = (socket.inet_aton(host)[::-1].hex().upper(), port)
    assert {("0100007F", server.facts["port"]), outside} <= places
    for address, _ in places - {outside}:
        assert address == "0100007F" or address == "0" * 24 + "01000000", f"it listens on {address}"


def test_outside_the_model_is_used_with_the_key_of_those_outside_alone(server: Copy, models: Models) -> None:
    status, told = _ask_outside(server, "GET", "/v1/models")
    assert status == 200 and [one["id"] for one in told["data"]] == ["model"]
    assert _ask_outside(server, "GET", "/health")[0] == 200
    ids = [5, 9, 17]
    status, written = _ask_outside(
        server, "POST", "/v1/completions", question={"model": "model", "prompt": ids, "max_tokens": 3, "return_token_ids": True}
    )
    assert status == 200 and len(written["choices"][0]["token_ids"]) == 3
    messages = [{"role": "user", "content": "find the town"}]
    status, said = _ask_outside(
        server, "POST", "/v1/chat/completions", question={"model": "model", "messages": messages, "max_tokens": 3}
    )
    assert status == 200 and said["choices"][0]["message"]["role"] == "assistant"
    status, tokens = _ask_outside(server, "POST", "/tokenize", question={"model": "model", "messages": messages})
    text = models.tokenizer.template.text(messages, (), generation_prompt=True)
    assert status == 200 and tokens["tokens"] == list(models.tokenizer.literal_ids(text))
    own = Path(server.facts["key"]).read_text()
    for method, path in ROUTES:
        for key in (None, "", own):
            assert _ask_outside(server, method, path, key=key, question={})[0] == 401, path
        assert _ask(server, method, path, KEY) == (200 if path == "/health" else 401), path


def test_outside_no_other_route_exists_whoever_asks_and_however_it_is_written(server: Copy, engine: HttpEngine) -> None:
    """Among them all that vLLM tells of itself where the job asks."""
    own = Path(server.facts["key"]).read_text()
    status, described = _asked(("127.0.0.1", server.facts["port"]), "GET", "/openapi.json", own, None)
    assert status == 200
    routes = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert {("POST", "/collective_rpc"), ("POST", "/pause"), ("POST", "/update_weights"), ("POST", "/reset_prefix_cache")} <= routes
    assert routes >= ROUTES
    hidden = routes - ROUTES | {("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/metrics")}
    for method, path in hidden:
        for key in (KEY, own):
            assert _ask_outside(server, method, path, key=key, question={})[0] == 404, path
    for path in (
        "//collective_rpc",
        "/collective_rpc/",
        "/%63ollective_rpc",
        "/v1/models/../../collective_rpc",
        "/collective_rpc?a=b",
    ):
        assert _ask_outside(server, "POST", path, question={"method": "sync_weights", "args": ["/nowhere"]})[0] == 404, path
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "YWJj" * 6}
    assert _ask_outside(server, "GET", "/v1/realtime", headers=upgrade)[0] == 404
    assert engine.identity().policy_version == engine.policy_version


def test_new_weights_wait_for_nobody_outside_and_those_who_asked_may_ask_again(
    server: Copy, engine: HttpEngine, models: Models, tmp_path: Path
) -> None:
    """A request outside that runs when weights are replaced neither keeps its cache of the old ones nor stops the run."""
    given_up = threading.Event()

    def keep_asking() -> None:
        while not given_up.is_set():
            question = {"model": "model", "prompt": [5, 9, 17], "max_tokens": 90, "ignore_eos": True}
            status, written = _ask_outside(server, "POST", "/v1/completions", question=question)
            assert status == 200
            if written["choices"][0]["finish_reason"] == "abort":
                given_up.set()

    asking = threading.Thread(target=keep_asking)
    asking.start()
    sequence = list(range(3, 60))
    version = 0
    while not given_up.is_set() and version < 50:
        version += 1
        name = ("second", "first")[version % 2]
        write_weights(models.weights(name), tmp_path / "weights")
        engine.reload(tmp_path / "weights", policy_version=version)
    given_up.set()
    asking.join()
    (scores_T,) = engine.score_tokens([sequence])
    expected_T = models.logprobs(name, sequence)[:-1].gather(1, torch.tensor(sequence[1:])[:, None]).squeeze(1)
    assert (scores_T - expected_T).abs().max().item() < 1e-5
    assert version < 50, "nothing was asked at the time"
    assert (
        _ask_outside(server, "POST", "/v1/completions", question={"model": "model", "prompt": sequence, "max_tokens": 1})[0] == 200
    )


def _sockets(pid: int) -> Iterator[str]:
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]
