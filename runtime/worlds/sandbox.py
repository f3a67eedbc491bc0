"""Runs a Python program that a model wrote: in its own process, isolated by bubblewrap, with limits.

What it isolates: no network, no home, none of the host's files but a read-only `/usr` and the Python installation, no environment
variables, its own process table. Time, memory per process, processes, file sizes and output are limited, and everything is killed
at the end. What it does not: it shares the host's kernel, so a hole in the kernel is a hole in it, and it may keep processors busy
for as long as its time allows.
"""

import contextlib
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from typing import IO, Literal

from ...specs.diagnostics import ExitCode, UserError

OUTPUT_BYTES = 64 * 1024
FILE_BYTES = 1024 * 1024
SCRATCH_BYTES = 16 * 1024 * 1024
PROCESSES = 8
FIRST_SPARE_UID = 1_900_000_000  # far above any account, so that process limits count one program only

Status = Literal["ok", "failed", "timeout", "output"]

# Limits are set inside, by the first thing that runs there: (time, memory, processes, file size, user or 0).
_LAUNCHER = """
import os, resource, sys
seconds, memory, processes, file_bytes, user = map(int, sys.argv[1:6])
source = sys.stdin.buffer.read().decode()
limits = {"CPU": seconds, "AS": memory, "FSIZE": file_bytes, "NOFILE": 64, "CORE": 0}
if processes:
    limits["NPROC"] = processes
for name, limit in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
sys.argv = ["program"]
exec(compile(source, "program", "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ran:
    """What became of a program."""

    status: Status  # "failed": it ended with an error, or a limit of memory, processes or files stopped it
    output: str  # standard output and error together, at most 64 KiB


def run_python(source: str, *, seconds: float, memory_mib: int, allow_unsandboxed: bool = False) -> Ran:
    """Run a program to its end or its limits.

    Raises:
        UserError: nothing here can isolate it, and the settings do not consent to run it without (exit 5).
    """
    require_sandbox(allow_unsandboxed)
    prefix = _isolation()
    user = 0
    if prefix and "--cap-add" in prefix:
        user = FIRST_SPARE_UID + random.SystemRandom().randrange(2**16)
    return _run(prefix or (), source, seconds, memory_mib, user)


def require_sandbox(allow_unsandboxed: bool) -> None:
    """Refuse where programs cannot be isolated and the settings do not consent to that.

    Raises:
        UserError: exit 5.
    """
    if _isolation() is not None or allow_unsandboxed:
        return
    found = "it is installed, but the kernel does not let it make namespaces here" if which("bwrap") else "it is not installed"
    raise UserError(
        f"programs that a model writes run inside bubblewrap (`bwrap`), and {found}",
        exit_code=ExitCode.UNFIT,
        fix="install the package `bubblewrap`, or set `language: steps` or `allow_unsandboxed: true` in the world's settings",
    )


@cache
def _isolation() -> tuple[str, ...] | None:
    """The bubblewrap command that works on this machine, or None."""
    bwrap = which("bwrap")
    if bwrap is None:
        return None
    apart = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
    ways: list[tuple[str, ...]] = [("--unshare-all", "--uid", "65534", "--gid", "65534")]
    if os.geteuid() == 0:
        # The kernel does not count root's processes, so a root that may becomes someone else inside.
        ways.insert(0, (*apart, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"))
    for way in ways:
        command = (bwrap, *way, *_view())
        user = FIRST_SPARE_UID if "--cap-add" in way else 0
        if _run(command, "import json\nprint('isolated')", 20.0, 256, user) == Ran(status="ok", output="isolated\n"):
            return command
    return None


def _view() -> tuple[str, ...]:
    """What a program sees of the machine."""
    view = ["--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "LANG", "C.UTF-8"]
    view += ["--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for name in ("/lib", "/lib64", "/lib32", "/bin", "/sbin"):
        path = Path(name)
        if path.is_symlink():
            view += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            view += ["--ro-bind", name, name]
    installation = Path(sys.base_prefix).resolve()
    if not installation.is_relative_to("/usr"):
        # Made on the way they would take the host's modes, and a folder such as /root would hide what lies below it.
        for folder in [*reversed(installation.parents)][1:]:
            view += ["--perms", "0755", "--dir", str(folder)]
        view += ["--ro-bind", str(installation), str(installation)]
    return (*view, "--dev", "/dev", "--size", str(SCRATCH_BYTES), "--perms", "1777", "--tmpfs", "/tmp", "--chdir", "/tmp", "--")


def _run(prefix: tuple[str, ...], source: str, seconds: float, memory_mib: int, user: int) -> Ran:
    # Without a user namespace or a user of its own, the process limit would count everything that this account runs.
    processes = PROCESSES if prefix else 0
    limits = [int(seconds) + 1, memory_mib * 1024 * 1024, processes, FILE_BYTES, user]
    command = [*prefix, str(Path(sys.executable).resolve()), "-I", "-S", "-c", _LAUNCHER, *map(str, limits)]
    environment = {"PATH": "/usr/bin", "LANG": "C.UTF-8"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        return _watch(process, process.stdin, process.stdout, source.encode("utf-8", "replace"), time.monotonic() + seconds)
    finally:
        _kill(process)
        process.stdout.close()


def _watch(process: "subprocess.Popen[bytes]", stdin: IO[bytes], stdout: IO[bytes], source: bytes, deadline: float) -> Ran:
    """Feed the source and collect the output until the program ends, says too much or takes too long."""
    collected, pending = bytearray(), memoryview(source)
    for stream in (stdin, stdout):
        os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                return Ran(status="timeout", output=_text(collected))
            if any(key.fileobj is stdin for key, _ in ready):
                try:
                    pending = pending[os.write(stdin.fileno(), pending[:65536]) :]
                except BrokenPipeError:
                    pending = pending[:0]
                if not pending:
                    selector.unregister(stdin)
                    stdin.close()
            if any(key.fileobj is stdout for key, _ in ready):
                chunk = os.read(stdout.fileno(), 65536)
                if not chunk:
                    break
                collected += chunk
                if len(collected) > OUTPUT_BYTES:
                    return Ran(status="output", output=_text(collected[:OUTPUT_BYTES]))
    try:
        code = process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Ran(status="timeout", output=_text(collected))
    return Ran(status="ok" if code == 0 else "failed", output=_text(collected))


def _text(output: bytearray) -> str:
    return output.decode("utf-8", "replace")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the program and all that it started: bubblewrap's end ends its process namespace."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None and not process.stdin.closed:
        process.stdin.close()
