"""`vllm` over HTTP, seen from a rank: a client of the server that the job started itself, which takes its weights from the job."""

import http.client
import os
import select
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ..data.tokenizers import ChatTokenizer
from .endpoint import Endpoint, HttpClient, Patience, ServiceFailure, read_json
from .served_engine import AT_ONCE, PATIENCE, ServedEngine
from .vllm_process import engine_ended

MODEL = "model"  # its name at the server
ANSWER_BYTES = 1 << 16
ONCE = Patience(attempts=1, unreadable=1, answer_seconds=PATIENCE.answer_seconds, total_seconds=PATIENCE.total_seconds)
ENDING_SECONDS = 5.0  # from a connection that breaks to the end of the process behind it


class HttpEngine(ServedEngine):
    """An engine behind a server of ours. See `protocol.py` for what each method promises."""

    def __init__(self, endpoint: Endpoint, *, pid: int, log: Path, vocabulary: int, tokenizer: ChatTokenizer) -> None:
        """
        Args:
            pid: of the server; it is not waited for once it has ended.
            log: what it writes, for messages.
        """
        self._alive = _Alive(pid, log)
        client = HttpClient(endpoint, PATIENCE, at_once=AT_ONCE, watch=self._alive)
        self._once = HttpClient(endpoint, ONCE, at_once=1, watch=self._alive)
        super().__init__(client, MODEL, tokenizer, owner="this job", vocabulary=vocabulary)

    def reload(self, folder: Path, *, policy_version: int) -> None:
        """Replace the weights by those of a folder, and forget every cached prefix; only then is the new version told.

        Raises:
            EngineSilent: the server does not answer any more.
            UserError: exit code 6. It refused.
        """
        self._pause()
        self._on_workers("sync_weights", str(folder))
        self._resume(policy_version)

    def transfer(self, step: str, info: Any, *, policy_version: int) -> None:
        """One step of a transfer of weights (`vllm_transfer.py`); the version is told after the last of them.

        Raises:
            EngineSilent: the server does not answer any more.
            UserError: exit code 6. It refused.
        """
        if step == "start":
            self._pause()
        self._on_workers("transfer_weights", step, info)
        if step == "finish":
            self._resume(policy_version)

    def close(self) -> None:
        """Watch the server no longer."""
        self._alive.close()

    def _pause(self) -> None:
        """Whoever else asks the server waits for the new weights; what it is writing for them is given up. The job asks nothing."""
        self._develop("/pause", {})

    def _resume(self, policy_version: int) -> None:
        if self._develop("/reset_prefix_cache", {}) != {"success": True}:
            raise self.failure(ServiceFailure("it kept its prefix cache, which belongs to its earlier weights", "refused"))
        self._develop("/resume", {})
        self.policy_version = policy_version

    def _on_workers(self, method: str, *values: Any) -> None:
        self._develop("/collective_rpc", {"method": method, "args": values})

    def _develop(self, route: str, question: Any) -> Any:
        """Ask a route of vLLM's development mode, once: half of a transfer cannot be asked for again."""
        try:
            return self._once.ask(self._once.endpoint.root + route, question, read_json, most_bytes=ANSWER_BYTES)
        except ServiceFailure as failure:
            self._alive.require(ENDING_SECONDS if failure.kind == "silent" else 0.0)
            if failure.kind == "silent":
                raise self.failure(failure) from failure
            raise UserError(
                f"the vLLM server did not take new weights: {failure}",
                exit_code=ExitCode.FAILED,
                fix="nothing was rolled out with them; its log says more, launch again",
            ) from failure


class _Alive:
    """Ends the waiting for a server that has ended."""

    def __init__(self, pid: int, log: Path) -> None:
        self._log = log
        try:
            self._process = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise engine_ended(log) from error

    def require(self, seconds: float) -> None:
        """Raises EngineSilent if it has ended, or ends in so many seconds."""
        if select.select([self._process], [], [], seconds)[0]:
            raise engine_ended(self._log)

    def waiting(self, seconds: float, cause: str) -> None:
        self.require(0.0)

    def answered(self) -> None:
        pass

    def close(self) -> None:
        if self._process >= 0:
            os.close(self._process)
            self._process = -1


def is_healthy(endpoint: Endpoint) -> bool:
    """Whether the server answers yet."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=5)
    try:
        connection.request("GET", f"{endpoint.root}/health")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
