"""Teachers that somebody serves, in a real run: missed before training, waited for in the middle of it, and gone on with."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .polymath import REPOSITORY, compile_smoke, job_folder, losses, polymath

TEACHERS = ("operator", "instructor")
SERVED = ", ".join(f"{name}: {{url_env: {name.upper()}_URL, model: model, patience_seconds: 15}}" for name in TEACHERS)
SHORT = (
    f"engines={{teachers: {{{SERVED}}}}}",
    "student.distill.steps=8",
    "student.sft.steps=10",
    "evaluate=null",
    "export=[]",
)
START_SECONDS = 240


class Servers:
    """A server process for each teacher, on a port that stays."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        for name in TEACHERS:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[name] = probe.getsockname()[1]

    @property
    def environment(self) -> dict[str, str]:
        return {f"{name.upper()}_URL": f"http://127.0.0.1:{port}/v1" for name, port in self.ports.items()}

    def start(self, name: str, folder: Path) -> None:
        words = [sys.executable, REPOSITORY / "tests" / "scripted_engine.py", folder, str(self.ports[name]), "0"]
        self.processes[name] = subprocess.Popen(list(map(str, words)))
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.ports[name]), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.processes[name].poll() is None
                time.sleep(0.1)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()


@pytest.fixture
def servers() -> Iterator[Servers]:
    found = Servers()
    yield found
    for name in TEACHERS:
        found.kill(name)


@pytest.mark.multi_rank
def test_a_run_is_refused_without_its_teachers_interrupted_when_one_is_gone_and_goes_on(servers: Servers, tmp_path: Path) -> None:
    plan, run_dir = compile_smoke(tmp_path, *SHORT), tmp_path / "runs" / "smoke"
    refused = polymath("launch", plan, environment=servers.environment)
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "teacher `" in refused.stderr and "cannot be asked for /v1/models" in refused.stderr
    distill = job_folder(plan, run_dir, "distill")
    assert not (distill / "batches").exists()
    again = polymath("launch", plan, environment=servers.environment)
    assert again.returncode == 5 and "services do not answer" in again.stderr  # said by the launch itself now

    for name in TEACHERS:
        last = sorted(run_dir.glob(f"jobs/teachers.{name}.*"))[-1]
        servers.start(name, last / "model")
    launch = subprocess.Popen(
        [sys.executable, "-m", "polymath.runtime.cli", "launch", str(plan)],
        env={**os.environ, **servers.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (distill / "batches" / "000002").exists():
        assert launch.poll() is None, launch.communicate()[0]
        time.sleep(0.02)
    servers.processes["operator"].send_signal(signal.SIGKILL)
    said = launch.communicate(timeout=200)[0]
    assert launch.returncode == 7 and "the engine of teacher `operator`" in said, said
    taken = max(int(path.name.removeprefix("step-")) for path in (distill / "checkpoints").glob("step-*"))
    assert 2 <= taken < 8

    last = sorted(run_dir.glob("jobs/teachers.operator.*"))[-1]
    servers.start("operator", last / "model")
    finished = polymath("launch", plan, environment=servers.environment)
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0 and f"distill: goes on from step {taken}" in said, said
    assert len(losses(distill)) == 8
