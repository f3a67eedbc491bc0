"""Stands between us and an MCP server and bounds what the server can do to us. Run as a script: `relay.py BYTES COMMAND...`.

What it does: starts the server in a session of its own, passes lines on in both directions, and ends the server with all it started
when we go away or when it has written more than BYTES since our last message; the open request is then answered with an error. One
line is held, never more. What it does not do: isolate. A server runs with the rights of the job.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

CHUNK_BYTES = 1 << 16
GRACE_SECONDS = 0.5  # for a server to end by itself after its input was closed; the client waits 2 for us


class Relay:
    """One server."""

    def __init__(self, most_bytes: int, command: list[str]) -> None:
        self.most_bytes = most_bytes
        self.written = 0  # since our last message
        self.request: object = None  # id of the open request
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def run(self) -> int:
        """Pass lines on until one side ends."""
        threading.Thread(target=self._pass_requests, daemon=True).start()
        assert self.child.stdout is not None
        line = bytearray()
        while chunk := os.read(self.child.stdout.fileno(), CHUNK_BYTES):
            self.written += len(chunk)
            if self.written > self.most_bytes:
                self._answer(f"the server wrote more than {self.most_bytes} bytes")
                self._end()
                return 3
            line += chunk
            whole, newline, rest = bytes(line).rpartition(b"\n")
            if newline:
                self._tell(whole + newline)
                line = bytearray(rest)
        self._answer("the server ended")
        self._end()
        return self.child.wait()

    def _pass_requests(self) -> None:
        assert self.child.stdin is not None
        for line in iter(sys.stdin.buffer.readline, b""):
            self.written = 0
            with contextlib.suppress(ValueError, AttributeError):
                self.request = json.loads(line).get("id", self.request)
            with contextlib.suppress(OSError):  # the server is gone; its end is seen where its output is read
                self.child.stdin.write(line)
                self.child.stdin.flush()
        with contextlib.suppress(OSError):
            self.child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(GRACE_SECONDS)
        self._end()
        os._exit(0)

    def _answer(self, message: str) -> None:
        if self.request is not None:
            error = {"jsonrpc": "2.0", "id": self.request, "error": {"code": -32000, "message": message}}
            self._tell(json.dumps(error).encode() + b"\n")

    def _tell(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def _end(self) -> None:
        with contextlib.suppress(OSError):  # nothing of it is left
            os.killpg(self.child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(Relay(int(sys.argv[1]), sys.argv[2:]).run())
