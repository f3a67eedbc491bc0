"""Where a tokenizer's templates run: one process beside ours, within limits of time, memory and output.

What it does: a chat template is a program that came with somebody's checkpoint. Jinja's sandbox keeps it from Python's internals,
but lets it loop, recurse and double a string; a response template has regular expressions that may go through every way to fail. A
thread of ours that does so could not be stopped. So each is asked of a child process, which ends where it takes too long, and is
started again for the next one.
What it does not do: isolate the child from files and network. That is left to Jinja's sandbox, so a hole there is a hole here.
"""

import atexit
import contextlib
import json
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal

from ...specs.diagnostics import ExitCode, UserError
from .template_worker import FAILURE, RESULT

TEMPLATE_SECONDS = 5.0  # of a processor; a conversation takes a millisecond, reading 100,000 characters up to two seconds
TEMPLATE_CHARACTERS = 8_000_000
ANSWER_SECONDS = 60.0  # by the clock, for a child that neither works nor answers
START_SECONDS = 120.0  # importing takes one to two on a busy laptop


class TemplateFailed(Exception):
    """A template that fails, or goes beyond a limit. Its text says which."""


class TemplateProcess:
    """Runs templates for all threads of this process, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None

    def run(self, action: Literal["render", "check", "read"], **arguments: Any) -> str:
        """What the function of this name in `template_worker.py` gives for these arguments, all of them JSON.

        Raises:
            TemplateFailed: the template fails, or goes beyond a limit.
            UserError: exit code 5; the process cannot be started.
        """
        limits = {"seconds": TEMPLATE_SECONDS, "characters": TEMPLATE_CHARACTERS}
        asked = json.dumps({"action": action, "arguments": arguments, **limits}).encode()
        with self._lock:
            try:
                answer = self._ask(asked)
            except BaseException:
                self.end()  # its answer, if there is one, must not be taken for that to the next request
                raise
        said = answer[1:].decode("utf-8", "surrogatepass")
        if answer[:1] == FAILURE:
            raise TemplateFailed(said)
        assert answer[:1] == RESULT
        return said

    def end(self) -> None:
        """Kill the child, if there is one."""
        if self._channel is not None:
            self._channel.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._child = self._channel = None

    def _ask(self, asked: bytes) -> bytes:
        if self._child is None or self._child.poll() is not None:
            self.end()
            self._start()
        assert self._child is not None and self._channel is not None
        try:
            self._channel.send_bytes(asked)
            if not self._channel.poll(ANSWER_SECONDS):
                raise TemplateFailed(f"it took longer than {ANSWER_SECONDS:g} s")
            return self._channel.recv_bytes(1 + 4 * TEMPLATE_CHARACTERS)
        except (EOFError, OSError) as error:  # it is dying, or has said what it never says
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(ANSWER_SECONDS)
            raise TemplateFailed(_cause_of_end(self._child.returncode)) from error

    def _start(self) -> None:
        self._channel, theirs = Pipe()
        # -P: no module of the folder that the user happens to work in. A session of its own: Ctrl-C is for us.
        command = [sys.executable, "-P", "-m", f"{__package__}.template_worker", str(theirs.fileno())]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
            theirs.close()
            ready = self._channel.poll(START_SECONDS) and self._channel.recv_bytes(0) == b""
        except (EOFError, OSError):
            ready = False
        finally:
            theirs.close()
        if not ready:
            raise UserError(
                "the process that runs chat templates did not start",
                exit_code=ExitCode.UNFIT,
                fix="see above what it said; where it said nothing, free memory and try again",
            )


def _cause_of_end(status: int | None) -> str:
    if status == -signal.SIGPROF:
        return f"it took longer than {TEMPLATE_SECONDS:g} s of a processor"
    how = f"by {signal.Signals(-status).name}" if status is not None and status < 0 else f"with status {status}"
    return f"the process that runs it ended {how}"


TEMPLATES = TemplateProcess()
atexit.register(TEMPLATES.end)
