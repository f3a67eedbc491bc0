"""One launch per run directory.

`lock` is held by the launcher for as long as it lives; the kernel frees it however the launcher ends, so nobody ever has to
unlock by hand. Workers share a second lock, `workers.lock`: a launch that follows a killed one waits until they have left.
"""

import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ...specs.diagnostics import ExitCode, UserError

LOCK, WORKERS_LOCK = "lock", "workers.lock"
LEAVE_SECONDS = 60.0  # workers of a dead launcher leave at once; a full disk cache may delay one that is writing


class RunLock:
    """Holds a run directory. Entering raises UserError (exit 5) where another launch holds it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._handle = -1

    def __enter__(self) -> "RunLock":
        handle = os.open(self.run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise self._held_by_another() from None
        self._handle = handle
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_holder_facts()).encode(), 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.ftruncate(self._handle, 0)
        os.close(self._handle)

    def wait_for_workers(self) -> None:
        """Wait until the workers of an earlier launch have left.

        Raises:
            UserError: they are still at work after a minute.
        """
        deadline = time.monotonic() + LEAVE_SECONDS
        with (self.run_dir / WORKERS_LOCK).open("a") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return  # closing the file frees the lock
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"processes of an earlier launch are still at work in {self.run_dir}",
                            exit_code=ExitCode.UNFIT,
                            fix="end them (ps aux | grep polymath.runtime) and launch again",
                        ) from None
                time.sleep(0.2)

    def _held_by_another(self) -> UserError:
        holder = read_holder(self.run_dir)
        who = f"by process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "by another process"
        return UserError(
            f"{self.run_dir} is in use {who}",
            exit_code=ExitCode.UNFIT,
            fix=f"wait for it (polymath status {self.run_dir}), end it, or launch with another --run-dir",
        )


def share_workers_lock(path: Path) -> int:
    """Held by every worker until it ends. Returns the descriptor, which must stay open."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def read_holder(run_dir: Path) -> dict[str, Any] | None:
    """Who holds a run directory, as written: pid, host, since, birth. None where nobody says so."""
    try:
        holder = json.loads((run_dir / LOCK).read_text())
        return holder if {"pid", "host", "since", "birth"} <= holder.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def is_running(run_dir: Path) -> bool:
    """Whether a launch is at work. Looks at the process and leaves the lock alone, lest it refuse a launch just then.

    The process of another host cannot be seen. There the lock itself is tried: a host that is gone, as a container is that was
    ended, holds it no longer.
    """
    holder = read_holder(run_dir)
    if holder is None:
        return False
    if holder["host"] == socket.gethostname():
        return _birth(holder["pid"]) == holder["birth"] is not None
    try:
        with (run_dir / LOCK).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _holder_facts() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "birth": _birth(os.getpid())}


def _birth(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; tells a process from a later one that got its number."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])
