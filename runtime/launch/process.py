"""Starting the processes of a group of jobs.

`Launcher` is the seam: this one starts torchrun on this machine; a cluster's would submit a job and poll it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...compiler.plan import Job, Role
from .lock import WORKERS_LOCK
from .watch import LAUNCHER_PID, WORKERS_LOCK_PATH


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Jobs that run one after the other in one set of processes."""

    plan_folder: Path
    run_dir: Path
    jobs: tuple[Job, ...]
    log: Path
    port: int | None  # of the rendezvous; None takes a free one

    @property
    def role(self) -> Role:
        """What the processes are; jobs share a group only where theirs agree."""
        return self.jobs[0].roles["trainer"]


class Running(Protocol):
    """A group at work."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        ...

    def kill(self) -> None:
        """End every process of it at once."""
        ...


class Launcher(Protocol):
    """What starts groups."""

    def start(self, group: Group) -> Running: ...


class LocalTorchrun:
    """torchrun on this machine, over loopback."""

    def start(self, group: Group) -> Running:
        group.log.parent.mkdir(parents=True, exist_ok=True)
        with group.log.open("ab") as log:
            log.write(f"\n== {' '.join(argv(group))}\n".encode())
            log.flush()
            process = subprocess.Popen(
                argv(group),
                env=environment(group, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches the launcher only, which asks for an orderly stop
            )
        return RunningProcess(process)


class RunningProcess:
    """A process and all that descend from it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        # torchrun puts each worker into a session of its own, so the process group alone would miss them.
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def argv(group: Group) -> list[str]:
    """The command of a group. `port` overrides the rendezvous of the plan."""
    arguments = [one for one in group.role.torchrun if not one.startswith(("--rdzv-", "--local-addr"))]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *arguments,
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{group.port or 0}",
        "--local-addr=127.0.0.1",
        "-m",
        "polymath.runtime",
        str(group.plan_folder.resolve()),
        *[word for job in group.jobs for word in ("--job", job.id)],
        "--run-dir",
        str(group.run_dir.resolve()),
    ]


def environment(group: Group, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a group: offline, loopback only, one thread per rank."""
    return {
        **inherited,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONSAFEPATH": "1",  # a file called torch.py in the folder of the launch is not torch
        **group.role.environment,
        LAUNCHER_PID: str(os.getpid()),
        WORKERS_LOCK_PATH: str((group.run_dir / WORKERS_LOCK).resolve()),
    }


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, deepest first."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found = frontier + found
    return found
