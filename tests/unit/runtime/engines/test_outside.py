"""Vllm's servers beyond loopback: who may ask them what, and which addresses and keys a launch takes for that.

A small application stands for vLLM's, behind the same middleware and the same server.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polymath.runtime.engines import vllm_server
from polymath.runtime.engines.outside import check_outside, outside_of
from polymath.runtime.engines.vllm_server import KEY, OUTSIDE_KEY, OUTSIDE_SOCKET, ROUTES, AnswerOutside, Outside, RequireKey
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import Listen

LISTEN = Listen(address_env="ENGINE_ADDRESS", key_env="ENGINE_KEY")
OWN, THEIRS = "of-the-job", "of-those-outside"
DEVELOPMENT = "/collective_rpc"

words = st.text(st.characters(codec="latin-1"), max_size=12)
paths = st.one_of(
    st.sampled_from([path for _, path in ROUTES] + [DEVELOPMENT, "/pause", "/"]),
    st.builds(str.__add__, st.sampled_from([path for _, path in ROUTES]), words),
    st.builds("/{}".format, words),
)
headers = st.lists(
    st.tuples(st.sampled_from([b"host", b"x-forwarded-for", b"forwarded", b"content-type", b"x-request-id"]), st.binary())
)


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "get", "CONNECT"]),
    path=paths,
    root_path=st.sampled_from(["", "/v1", "/"]),
    query=st.binary(max_size=8),
    sent=headers,
    key=st.sampled_from(
        [b"Bearer " + THEIRS.encode(), b"Bearer " + OWN.encode(), b"bearer " + THEIRS.encode(), THEIRS.encode(), b""]
    ),
)
def test_outside_only_the_routes_that_use_a_model_are_reached_and_only_with_the_key(
    method: str, path: str, root_path: str, query: bytes, sent: list[tuple[bytes, bytes]], key: bytes
) -> None:
    reached: list[dict[str, Any]] = []
    statuses: list[int] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": path, "raw_path": b"/collective_rpc", "root_path": root_path}
    scope |= {"query_string": query, "headers": [*sent, (b"authorization", key)]}
    asyncio.run(Outside(app, key=THEIRS, own_key=OWN)(scope, _nothing, send))
    if (method, path) not in ROUTES:
        assert statuses[0] == 404 and not reached
    elif key != b"Bearer " + THEIRS.encode():
        assert statuses[0] == 401 and not reached
    else:
        (seen,) = reached
        assert (seen["path"], seen["raw_path"], seen["root_path"], seen["query_string"]) == (path, path.encode(), "", b"")
        assert {name for name, _ in seen["headers"]} <= {b"content-type", b"authorization"}
        assert dict(seen["headers"])[b"authorization"] == b"Bearer " + OWN.encode()


class Application:
    """Answers every path with its name, and tells that it was reached."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self._stack = AnswerOutside(RequireKey(self._answer))

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await self._stack({**scope, "app": self}, receive, send)

    async def _answer(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Application, tuple[str, int], tuple[str, int]]]:
    """An application, its address on loopback and the one outside."""
    uvicorn = pytest.importorskip("uvicorn")
    inner, outer = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    for name, value in ((KEY, OWN), (OUTSIDE_KEY, THEIRS), (OUTSIDE_SOCKET, str(outer.fileno()))):
        monkeypatch.setenv(name, value)
    app = Application()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, args=([inner],))
    thread.start()
    try:
        yield app, inner.getsockname(), outer.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        inner.close()
        outer.detach()  # the second server closed it


def _status(address: tuple[str, int], line: str, key: str | None, *more: str) -> int:
    """Of what is sent as it stands here: no client tidies it up."""
    told = [f"Authorization: Bearer {key}"] if key is not None else []
    with socket.create_connection(address, timeout=20) as connection:
        text = "\r\n".join([f"{line} HTTP/1.1", "Host: x", "Content-Length: 0", "Connection: close", *told, *more, "", ""])
        connection.sendall(text.encode("latin-1"))
        return int(connection.makefile("rb").readline().split()[1])


def test_what_a_connection_may_ask_follows_from_the_socket_that_it_came_in_by(
    served: tuple[Application, tuple[str, int], tuple[str, int]],
) -> None:
    app, inside, outside = served
    for method, path in sorted(ROUTES):
        assert _status(outside, f"{method} {path}", THEIRS) == 200
        assert _status(outside, f"{method} {path}", OWN) == _status(outside, f"{method} {path}", None) == 401
    assert len(app.reached) == len(ROUTES)
    assert _status(inside, f"POST {DEVELOPMENT}", OWN) == 200 and app.reached.pop() == DEVELOPMENT
    assert _status(inside, f"POST {DEVELOPMENT}", THEIRS) == _status(inside, "POST /v1/completions", THEIRS) == 401
    forged = ["Forwarded: for=127.0.0.1", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: 127.0.0.1", "X-Original-URL: /pause"]
    upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    for line in (
        f"POST {DEVELOPMENT}",
        f"POST /{DEVELOPMENT}",
        f"POST {DEVELOPMENT}/",
        "POST /%63ollective_rpc",
        "POST /v1/../collective_rpc",
        "POST /v1/completions/..%2f..%2fcollective_rpc",
        "POST /v1/completions/",
        "POST /v1/completions;x",
        "POST /V1/completions",
        f"POST http://127.0.0.1{DEVELOPMENT}",
        "GET /v1/completions",
        "HEAD /v1/models",
        "OPTIONS /v1/models",
        "PUT /v1/models",
        "GET /docs",
        "GET /openapi.json",
        "GET /metrics",
    ):
        for key in (THEIRS, OWN):
            assert _status(outside, line, key, *forged) == 404, line
    assert _status(outside, "GET /v1/realtime", THEIRS, *upgrade) == 404
    assert len(app.reached) == len(ROUTES)


def _refused(environment: dict[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        outside_of(LISTEN, environment)
    assert caught.value.exit_code == ExitCode.UNFIT
    return caught.value.message


@pytest.mark.parametrize(
    "address", ["", "10.0.0.5", "10.0.0.5:", "10.0.0.5:0", "10.0.0.5:99999", "host:8000", "http://10.0.0.5:8000"]
)
def test_an_address_that_is_none_is_one_message(address: str) -> None:
    message = _refused({"ENGINE_ADDRESS": address, "ENGINE_KEY": "a-key"})
    assert message.startswith("engines.listen.address_env: ENGINE_ADDRESS is not ")


def test_the_key_comes_from_a_variable_or_from_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    address = {"ENGINE_ADDRESS": "[::1]:8000"}
    found = outside_of(LISTEN, {**address, "ENGINE_KEY_FILE": str(tmp_path / "key")})
    assert found.key == "from-a-file" and found.key not in repr(found)
    assert (found.url(0), found.url(2)) == ("http://[::1]:8000/v1", "http://[::1]:8002/v1")
    for key in ("", "with space", 'quo"te'):
        assert "engines.listen.key_env: ENGINE_KEY is not set, or is no key" in _refused({**address, "ENGINE_KEY": key})


def test_an_address_of_another_machine_or_a_port_in_use_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "a-key")
    monkeypatch.setenv("ENGINE_ADDRESS", "198.51.100.7:8000")
    with pytest.raises(UserError, match=r"nothing can listen on 198\.51\.100\.7, port 8000: cannot assign requested address"):
        check_outside(LISTEN, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("ENGINE_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(UserError, match=rf"port {port}: address already in use"):
            check_outside(LISTEN, 1)
    check_outside(LISTEN, 1)
    monkeypatch.setenv("ENGINE_ADDRESS", "127.0.0.1:65535")
    with pytest.raises(UserError, match="port 65536"):
        check_outside(LISTEN, 2)


def test_a_port_is_taken_from_the_moment_that_a_server_starts_not_only_once_its_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the second of two launches would pass its check, and never answer there."""
    monkeypatch.setenv("ENGINE_KEY", "a-key")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("ENGINE_ADDRESS", f"127.0.0.1:{port}")
    with outside_of(LISTEN).bound(0), pytest.raises(UserError, match=rf"port {port}: address already in use"):
        check_outside(LISTEN, 1)


def test_a_server_that_cannot_answer_outside_ends_its_process_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = asyncio.Event()
    monkeypatch.setattr(vllm_server, "end_group", ended.set)
    monkeypatch.setenv(KEY, OWN)
    monkeypatch.setenv(OUTSIDE_KEY, THEIRS)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.wait_for(ended.wait(), 20)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as no_stream:
        monkeypatch.setenv(OUTSIDE_SOCKET, str(no_stream.fileno()))
        with pytest.raises(ValueError, match="Stream Socket"):
            asyncio.run(AnswerOutside(app)({"type": "lifespan", "app": app}, _nothing, None))
        no_stream.detach()  # the server has closed it
    assert ended.is_set() and "the server outside has ended: ValueError" in capsys.readouterr().err
