"""Starts, watches and ends the processes around vLLM. One rank of a job starts each of them, and they end with it, however it ends.

What it does: a worker of ours per copy of a model, its log in the job's folder, and one clear error where it does not come up.
What it does not do: restart one that ended. The job then stops as interrupted, and the next launch goes on from what was published.
"""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...compiler.plan import Role
from ...specs.diagnostics import ExitCode, UserError
from ..launch.watch import LAUNCHER_PID

START_SECONDS = 900.0  # importing vLLM alone takes 20 s on a busy laptop; large weights come from a disk
STOP_SECONDS = 10.0
POLL_SECONDS = 0.25
BLOCK_TOKENS = 32  # of the cache of keys and values: the fewest that vLLM's attention on a CPU takes in full strides
LOG_LINES = 15  # of a process that did not come up, in the message
PYTHON = "POLYMATH_VLLM_PYTHON"
GPUS = "CUDA_VISIBLE_DEVICES"
TORCHRUN = ("RANK", "LOCAL_RANK", "ROLE_", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_", "MASTER_", "TORCHELASTIC_")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """A copy of an engine: its model, and what it must hold."""

    folder: Path
    dtype: str
    context_tokens: int  # of the longest sequence
    sequences: int  # at once
    batched_tokens: int  # of one forward pass, which also bounds the logits that exist at once
    cache_bytes: int  # of keys and values
    tensor: int  # devices of a copy
    transfer: str | None = None  # vLLM's engine that takes new weights from the trainer's device; None: they come in a folder
    gpus: tuple[str, ...] = ()  # that it sees; none on a CPU

    @property
    def variables(self) -> dict[str, str]:
        """Of its environment."""
        return {GPUS: ",".join(self.gpus)} if self.gpus else {}

    @property
    def words(self) -> list[str]:
        """vLLM's own arguments, for our worker and for its server."""
        longest = self.context_tokens + 1  # vLLM always writes one token, also after a sequence that it only scores
        return [
            f"--model={self.folder}",
            f"--dtype={self.dtype}",
            f"--max-model-len={longest}",
            f"--max-num-seqs={self.sequences}",
            f"--max-num-batched-tokens={max(self.batched_tokens, self.sequences)}",
            f"--kv-cache-memory-bytes={self.cache_bytes}",
            f"--block-size={BLOCK_TOKENS}",
            f"--tensor-parallel-size={self.tensor}",
            "--load-format=safetensors",
            "--generation-config=vllm",  # the folder's own sampling defaults never apply
            "--enforce-eager",
            "--enable-prefix-caching",
            "--max-logprobs=-1",
            "--worker-extension-cls=polymath.runtime.engines.vllm_weights.WeightSync",
            "--disable-log-stats",
            "--seed=0",
            *([f"--weight-transfer-config={json.dumps({'backend': self.transfer})}"] if self.transfer is not None else []),
        ]


def copies_of(role: Role | None) -> int:
    """How many processes a role of a job has, each with a copy of a model."""
    return role.devices // role.tensor if role is not None and role.engine == "vllm" else 0


class EngineProcess:
    """A process around vLLM, and all that descends from it."""

    def __init__(
        self,
        module: str,
        words: Sequence[str],
        *,
        log: Path,
        variables: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it.

        Args:
            module: of this package, to be run.
            words: its arguments; seen by every user of the machine.
            log: where its output goes.
            variables: of its environment; no other user sees them.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        argv = [engine_python(), "-m", f"polymath.runtime.engines.{module}", *words]
        with log.open("ab") as stream:
            stream.write(f"\n== {' '.join(argv)}\n".encode())
            stream.flush()
            self._process = subprocess.Popen(
                argv,
                env={**environment(os.environ), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it answers.

        Raises:
            UserError: exit code 5. It ended first, or took too long; the end of its log is shown.
        """
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self.close()
                what = f"ended with status {status}" if status is not None else f"gave no answer in {START_SECONDS:g} seconds"
                raise UserError(
                    f"the vLLM engine {what} before it was ready; the end of its log:\n{_tail(self.log)}",
                    exit_code=ExitCode.UNFIT,
                    fix=f"the whole log: {self.log}",
                )
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End it and everything it started."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                if number == signal.SIGKILL:
                    return


def listening_socket(address: Path) -> socket.socket:
    """A socket of this machine that only its owner reaches."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    address.chmod(0o600)
    listener.listen(1024)
    return listener


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Of an engine: nothing of torchrun's, which vLLM would take for its own; offline; quiet about who uses it."""
    kept = {name: value for name, value in inherited.items() if not name.startswith(TORCHRUN)}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOOPBACK_IP": "127.0.0.1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process is enough: ours is around it already
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the token after a longest sequence is never read
        "VLLM_LOGGING_LEVEL": inherited.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONSAFEPATH": "1",
        LAUNCHER_PID: str(os.getpid()),  # it watches this rank, from before it was even imported
    }


def engine_python() -> str:
    """The interpreter of the environment that vLLM is installed in: this one, unless the environment names another.

    Raises:
        UserError: exit code 5. vLLM is not installed, or the other interpreter is not there.
    """
    other = os.environ.get(PYTHON)
    if other is not None:
        if not os.access(other, os.X_OK):
            fix = "name the interpreter of the environment that has vLLM"
            raise UserError(f"{PYTHON}: {other} is no program", exit_code=ExitCode.UNFIT, fix=fix)
        return other
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "an engine of this plan is `vllm`, and vLLM is not installed",
            exit_code=ExitCode.UNFIT,
            fix=f"docs/engines.md says how; or set {PYTHON} to the interpreter of an environment that has it",
        )
    return sys.executable


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
