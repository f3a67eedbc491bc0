"""The process around vLLM's own server: OpenAI's routes for scores and continuations, and vLLM's for new weights.

    VLLM_API_KEY=... python -m polymath.runtime.engines.vllm_server --host 127.0.0.1 --port PORT --model FOLDER ...

What it does: runs `vllm.entrypoints.openai.api_server`, asks for the key on every route, and ends with the process that started it.
vLLM itself asks for a key below `/v1` only; its development routes, which call any method of a worker, would be open to every
user of the machine. On a second socket, where it is given one, it answers the few routes that use a model, for another key.
What it does not do: bind an address. The first is loopback's, the second comes from whoever starts it, and what is answered
follows from the socket that a connection came in by: no header, path or address that a client writes can change it.
"""

import asyncio
import contextlib
import os
import runpy
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from hmac import compare_digest
from typing import Any

from ..launch.watch import exit_with_launcher
from .group import end_group

KEY = "VLLM_API_KEY"
OPEN = ("/health",)
OUTSIDE_KEY, OUTSIDE_SOCKET = "POLYMATH_OUTSIDE_KEY", "POLYMATH_OUTSIDE_SOCKET"
WORDS = ("--middleware=polymath.runtime.engines.vllm_server.RequireKey", "--disable-uvicorn-access-log")
OUTSIDE_WORDS = ("--middleware=polymath.runtime.engines.vllm_server.AnswerOutside",)
ROUTES = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
    }
)
"""All that is answered outside. None of them changes the model, or what others are answered."""
Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class RequireKey:
    """ASGI middleware: whoever has no key gets a 401, on every path but those that tell nothing."""

    def __init__(self, app: Application) -> None:
        self._app, self._key = app, os.environ[KEY]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN and not _has_key(scope, self._key):
            await _refuse(send, 401, "no key, or another")
        else:
            await self._app(scope, receive, send)


class Outside:
    """ASGI application: `ROUTES` of another application, which gets nothing of a request but its body and the body's type."""

    def __init__(self, app: Application, *, key: str, own_key: str) -> None:
        """
        Args:
            key: that is wanted here.
            own_key: that the application wants.
        """
        self._app, self._key = app, key
        self._authorization = (b"authorization", f"Bearer {own_key}".encode())

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "its server takes no WebSocket and tells nothing of its life"
        method, path = scope["method"], scope["path"]
        if (method, path) not in ROUTES:
            await _refuse(send, 404, "no such route")
        elif not _has_key(scope, self._key):
            await _refuse(send, 401, "no key, or another")
        else:
            kept = [(name, value) for name, value in scope["headers"] if name == b"content-type"]
            known = {"path": path, "raw_path": path.encode(), "root_path": "", "query_string": b""}
            await self._app({**scope, **known, "headers": [*kept, self._authorization]}, receive, send)


class AnswerOutside:
    """ASGI middleware: for as long as the application runs, a second server of it answers on the socket of the environment.

    Should that one end before the application does, the whole process ends: whoever started it sees an engine that is gone, and
    nobody is left waiting at a socket that nobody reads.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        outside = Outside(scope["app"], key=os.environ[OUTSIDE_KEY], own_key=os.environ[KEY])
        server = server_of(outside)
        serving = asyncio.create_task(server.serve([socket.socket(fileno=int(os.environ[OUTSIDE_SOCKET]))]))

        def end(ended: asyncio.Task[None]) -> None:
            if not server.should_exit:
                print(f"the server outside has ended: {ended.exception()!r}", file=sys.stderr, flush=True)
                end_group()

        serving.add_done_callback(end)
        try:
            await self._app(scope, receive, send)
        finally:
            server.should_exit = server.force_exit = True
            await serving


def server_of(app: Application) -> Any:
    """A server that runs beside another in one process, whose signals and log it leaves alone."""
    import uvicorn  # comes with vLLM

    class Beside(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    settings = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, access_log=False, server_header=False, proxy_headers=False
    )
    return Beside(settings)


def _has_key(scope: dict[str, Any], key: str) -> bool:
    return compare_digest(dict(scope["headers"]).get(b"authorization", b""), f"Bearer {key}".encode())


async def _refuse(send: Any, status: int, why: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": f'{{"error": "{why}"}}'.encode()})


def main() -> None:
    """Serve until whoever started this is gone."""
    exit_with_launcher(end_group)
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
