"""The process around vLLM's own server: OpenAI's routes for scores and continuations, and vLLM's for new weights.

    VLLM_API_KEY=... python -m polymath.runtime.engines.vllm_server --host 127.0.0.1 --port PORT --model FOLDER ...

What it does: runs `vllm.entrypoints.openai.api_server`, asks for the key on every route, and ends with the process that started it.
vLLM itself asks for a key below `/v1` only; its development routes, which call any method of a worker, would be open to every
user of the machine.
What it does not do: listen beyond loopback; whoever starts it gives it the address.
"""

import os
import runpy
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Any

from ..launch.watch import exit_with_launcher
from .group import end_group

KEY = "VLLM_API_KEY"
OPEN = ("/health",)
WORDS = ("--middleware=polymath.runtime.engines.vllm_server.RequireKey", "--disable-uvicorn-access-log")


class RequireKey:
    """ASGI middleware: whoever has no key gets a 401, on every path but those that tell nothing."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._wanted = f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not compare_digest(given, self._wanted):
                await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]})
                await send({"type": "http.response.body", "body": b'{"error": "no key, or another"}'})
                return
        await self._app(scope, receive, send)


def main() -> None:
    """Serve until whoever started this is gone."""
    exit_with_launcher(end_group)
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
