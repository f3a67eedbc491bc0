"""A service on loopback that says what a test tells it to: a judge, an engine."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, promised: int | None = None) -> None:
    """Answer; `promised` is the length that the header claims."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if promised is None else promised))
    handler.end_headers()
    handler.wfile.write(body)


def completion(verdict: Any) -> bytes:
    """A chat completion whose message is a verdict; text stands as it is."""
    content = verdict if isinstance(verdict, str) else json.dumps(verdict)
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@contextlib.contextmanager
def serving(reply: Reply, port: int = 0) -> Iterator[str]:
    """The base URL of a server that hands every question to `reply`; one that is got, and not posted, is empty."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with contextlib.suppress(ConnectionError):  # whoever asked may have left
                reply(self, question)

        def do_GET(self) -> None:
            reply(self, {})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
