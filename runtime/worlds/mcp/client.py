"""One running MCP server, asked from ordinary code: every call has a bound in time and size, and its failure is a text.

The protocol is the official `mcp` package's. Its event loop runs in a thread of its own; the server runs behind `relay.py`.
"""

import asyncio
import logging
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ....specs.diagnostics import ExitCode, UserError

RELAY = Path(__file__).with_name("relay.py")
MOST_PAGES = 100  # of a server's list of tools
SLACK_SECONDS = 5.0  # beyond a call's own bound, for a loop that is busy reading


class ServerGone(Exception):
    """The server did not start, does not answer, or has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCommand:
    """How a server is started and bounded."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()  # names of variables that it gets beside the harmless ones
    start_seconds: float = 30.0
    call_seconds: float = 30.0
    most_bytes: int = 8 << 20  # of output since our last message


class McpServer:
    """A server, started and initialised."""

    def __init__(self, how: ServerCommand) -> None:
        """Start it.

        Raises:
            ServerGone: it did not start in time.
            UserError: the `mcp` package is not installed (exit 5).
        """
        try:
            import mcp  # noqa: F401  (optional: only this world needs it)
        except ImportError as error:
            message = "world `mcp` needs the `mcp` package"
            raise UserError(message, exit_code=ExitCode.UNFIT, fix="pip install 'polymath[mcp]'") from error
        self._how = how
        self._loop = asyncio.new_event_loop()
        self._ready: Future[Any] = Future()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=_run, args=(self._loop, how, self._ready, self._closing), daemon=True)
        self._thread.start()
        self.close = weakref.finalize(self, _close, self._loop, self._closing, self._thread)
        try:
            self._session = self._ready.result(how.start_seconds)
        except Exception as error:
            self.close()
            raise ServerGone(f"the server did not start: {_said(error)}") from error

    def tools(self) -> list[Any]:
        """The server's tools, as the protocol gives them.

        Raises:
            ServerGone: it does not answer.
        """
        found: list[Any] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = self._ask(self._session.list_tools(cursor))
            found += page.tools
            cursor = page.nextCursor
            if not cursor:
                return found
        raise ServerGone(f"the server lists more than {MOST_PAGES} pages of tools")

    def call(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """Call a tool. Returns its answer as text, and whether the server says that the call succeeded.

        Raises:
            ServerGone: no answer came in time, or the server ended; ask a new one.
        """
        seconds = timedelta(seconds=self._how.call_seconds)
        result = self._ask(self._session.call_tool(name, dict(arguments), read_timeout_seconds=seconds))
        return "\n".join(text_of(one) for one in result.content), not result.isError

    def _ask(self, question: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(question, self._loop)
        try:
            return future.result(self._how.call_seconds + SLACK_SECONDS)
        except Exception as error:
            future.cancel()
            raise ServerGone(_said(error)) from error


def text_of(content: Any) -> str:
    """A part of an answer as text: what is not text is described."""
    kind = content.type
    if kind == "text":
        return content.text.encode("utf-8", "replace").decode()  # a lone surrogate is no character
    if kind in ("image", "audio"):
        return f"[{kind} of type {content.mimeType}, {len(content.data) * 3 // 4} bytes, not shown]"
    resource = getattr(content, "resource", content)
    text = getattr(resource, "text", None)
    if text is not None:
        return text.encode("utf-8", "replace").decode()
    size = f", {len(resource.blob) * 3 // 4} bytes" if hasattr(resource, "blob") else ""
    return f"[{kind} {getattr(resource, 'uri', '')}{size}, not shown]"


def _run(loop: asyncio.AbstractEventLoop, how: ServerCommand, ready: "Future[Any]", closing: asyncio.Event) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(how, ready, closing))
    except Exception as error:  # told to whoever waits for the start; later calls see that the loop has ended
        if not ready.done():
            ready.set_exception(error)
    finally:
        loop.close()


async def _serve(how: ServerCommand, ready: "Future[Any]", closing: asyncio.Event) -> None:
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import get_default_environment, stdio_client

    # It would log a traceback for every line of a server that is no message; what comes of such lines is an observation.
    logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)
    environment = {**get_default_environment(), **{name: os.environ[name] for name in how.environment if name in os.environ}}
    server = StdioServerParameters(
        command=sys.executable,
        args=[str(RELAY), str(how.most_bytes), *how.command],
        env=environment,
        encoding_error_handler="replace",
    )
    with Path(os.devnull).open("w") as nowhere:
        async with stdio_client(server, errlog=nowhere) as streams, ClientSession(*streams) as session:
            await session.initialize()
            ready.set_result(session)
            await closing.wait()


def _close(loop: asyncio.AbstractEventLoop, closing: asyncio.Event, thread: threading.Thread) -> None:
    if not loop.is_closed():
        try:
            loop.call_soon_threadsafe(closing.set)
        except RuntimeError:  # it ended meanwhile
            return
    thread.join(10.0)


def _said(error: BaseException) -> str:
    inner: Sequence[BaseException] = getattr(error, "exceptions", ())
    if inner:
        return _said(inner[0])
    return str(error) or {"TimeoutError": "no answer in time"}.get(type(error).__name__, type(error).__name__)
