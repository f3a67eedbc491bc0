"""Workers end with whoever started them.

torchrun gives each worker a session of its own, so nothing ends workers whose launcher or agent was killed with SIGKILL. Each
worker therefore waits for both in a thread, by process descriptors that the kernel makes readable the moment a process ends.
"""

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .lock import share_workers_lock

LAUNCHER_PID = "POLYMATH_LAUNCHER_PID"
WORKERS_LOCK_PATH = "POLYMATH_WORKERS_LOCK"


def _leave() -> None:
    # Not sys.exit: the main thread may be inside a collective that never returns once its peers are gone.
    os._exit(ExitCode.INTERRUPTED)


def exit_with_launcher(end: Callable[[], None] = _leave) -> None:
    """End this process as soon as its parent (torchrun's agent) or the launcher ends. Call it first, once per worker.

    Under torchrun by hand there is no launcher, and only the parent is watched.

    Args:
        end: how.
    """
    launcher, lock = os.environ.get(LAUNCHER_PID), os.environ.get(WORKERS_LOCK_PATH)
    if lock:
        share_workers_lock(Path(lock))
    watched = {os.getppid()} | ({int(launcher)} if launcher else set())
    try:
        handles = [os.pidfd_open(pid) for pid in watched]
    except ProcessLookupError:
        end()
        return
    threading.Thread(target=_wait, args=(handles, end), name="exit-with-launcher", daemon=True).start()


def _wait(handles: list[int], end: Callable[[], None]) -> None:
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    poll.poll()
    end()
