"""Engine processes: what they inherit, what is said when one does not come up, and that none is left behind.

A small program stands for the interpreter that vLLM is installed in, so that none of this needs vLLM.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.plan import Mesh, Role
from polymath.runtime.engines import vllm_launch
from polymath.runtime.engines.vllm import gpus_of, start_server
from polymath.runtime.engines.vllm_launch import PYTHON, EngineProcess, EngineSettings, engine_python, environment
from polymath.runtime.engines.vllm_server import KEY, RequireKey
from polymath.runtime.launch.process import descendants
from polymath.specs.diagnostics import ExitCode, UserError

SERVES = """
import os, subprocess, sys, time
from pathlib import Path
from polymath.runtime.launch.watch import exit_with_launcher
from polymath.runtime.engines.group import end_group
exit_with_launcher(end_group)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[-1]).write_text(f"{os.getpid()} {child.pid}")
print("serving", *sys.argv[1:], os.environ.get("A_SECRET"), flush=True)
time.sleep(600)
"""
STARTS_ONE = """
import sys, time
from pathlib import Path
from polymath.runtime.engines.vllm_launch import EngineProcess
engine = EngineProcess("vllm_worker", [sys.argv[2]], log=Path(sys.argv[1]))
time.sleep(600)
"""


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs `program.py` whatever it is asked to run."""
    program = tmp_path / "program.py"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(script))
    return program


def _wait_for(path: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(word) for word in path.read_text().split()]


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_an_engine_ends_with_all_that_it_started(interpreter: Path, tmp_path: Path) -> None:
    interpreter.write_text(SERVES)
    process = EngineProcess("vllm_worker", [str(tmp_path / "pids")], log=tmp_path / "log", variables={"A_SECRET": "hush"})
    pids = _wait_for(tmp_path / "pids")
    assert pids[0] == process.pid
    process.close()
    assert all(_is_gone(pid) for pid in pids)
    assert "hush" not in process.log.read_text().partition("serving")[0]  # the command is logged, secrets are not part of it
    process.close()


def test_no_engine_outlives_a_rank_that_was_killed(interpreter: Path, tmp_path: Path) -> None:
    interpreter.write_text(SERVES)
    rank = subprocess.Popen([sys.executable, "-c", STARTS_ONE, str(tmp_path / "log"), str(tmp_path / "pids")])
    pids = _wait_for(tmp_path / "pids")
    assert set(pids) <= set(descendants(rank.pid))
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    assert all(_is_gone(pid) for pid in pids)


def test_one_that_does_not_come_up_is_told_with_the_end_of_its_log(interpreter: Path, tmp_path: Path) -> None:
    interpreter.write_text("print('\\n'.join(f'line {n}' for n in range(40))); raise SystemExit(3)")
    process = EngineProcess("vllm_worker", [], log=tmp_path / "log")
    with pytest.raises(UserError, match=r"ended with status 3 before it was ready") as caught:
        process.wait_until(lambda: False)
    assert caught.value.exit_code == ExitCode.UNFIT
    assert "line 39" in caught.value.message and "line 3\n" not in caught.value.message


def test_one_that_says_nothing_is_ended_in_time(interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter.write_text(SERVES)
    monkeypatch.setattr(vllm_launch, "START_SECONDS", 0.5)
    process = EngineProcess("vllm_worker", [str(tmp_path / "pids")], log=tmp_path / "log")
    with pytest.raises(UserError, match=r"gave no answer in 0\.5 seconds"):
        process.wait_until(lambda: False)
    assert _is_gone(process.pid)


def test_nothing_of_torchrun_reaches_an_engine_and_it_stays_offline() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "7", "GROUP_RANK": "0", "ROLE_RANK": "1"}
    found = environment({**torchrun, "PATH": "/bin"})
    assert not torchrun.keys() & found.keys() and found["PATH"] == "/bin"
    assert found["HF_HUB_OFFLINE"] == "1" and found["VLLM_HOST_IP"] == "127.0.0.1"


def test_a_machine_without_vllm_is_told_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr(vllm_launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed") as caught:
        engine_python()
    assert caught.value.exit_code == ExitCode.UNFIT
    monkeypatch.setenv(PYTHON, os.devnull)
    with pytest.raises(UserError, match=f"{PYTHON}: {os.devnull} is no program"):
        engine_python()


def test_every_copy_has_gpus_of_its_own_unless_it_shares_the_trainer_s() -> None:
    def role(devices: int, tensor: int = 1, shared: bool = False, mesh: Mesh | None = None) -> Role:
        return Role(devices=devices, torchrun=(), environment={}, tensor=tensor, shared=shared, mesh=mesh)

    mesh = Mesh(devices=2, replicate=1, shard=2, expert=1, micro_batch=1)
    visible = ["7", "6", "5", "4", "3", "2", "1", "0"]  # as CUDA_VISIBLE_DEVICES may name them
    roles = {"trainer": role(2, mesh=mesh), "rollout": role(4, tensor=2), "scorer": role(2)}
    found = [gpus_of(roles, *copy, visible) for copy in (("rollout", 0), ("rollout", 1), ("scorer", 0), ("scorer", 1))]
    assert found == [("5", "4"), ("3", "2"), ("1",), ("0",)]
    sharing = {**roles, "rollout": role(2, shared=True)}
    assert [gpus_of(sharing, *copy, visible) for copy in (("rollout", 1), ("scorer", 0))] == [("6",), ("5",)]
    only_driving = {"trainer": role(2), "rollout": role(1)}  # an evaluation's ranks compute nothing
    assert gpus_of(only_driving, "rollout", 0, visible) == ("7",)


def test_an_engine_sees_its_own_gpus_and_is_told_how_its_weights_come() -> None:
    plain = EngineSettings(
        folder=Path("model"), dtype="float32", context_tokens=8, sequences=1, batched_tokens=8, cache_bytes=2**20, tensor=2
    )
    assert plain.variables == {} and not any("weight-transfer" in word for word in plain.words)
    told = replace(plain, transfer="nccl", gpus=("5", "4"))
    assert told.variables == {"CUDA_VISIBLE_DEVICES": "5,4"}
    assert '--weight-transfer-config={"backend": "nccl"}' in told.words


SHOWS = """
import json, os, sys
from pathlib import Path
Path(__file__).with_name("seen.json").write_text(json.dumps([sys.argv[1:], os.environ["VLLM_API_KEY"]]))
"""


def test_a_server_is_told_to_stay_on_loopback_to_want_its_key_and_never_to_run_a_model_s_code(
    interpreter: Path, tmp_path: Path
) -> None:
    interpreter.write_text(SHOWS)
    settings = EngineSettings(
        folder=Path("model"), dtype="float32", context_tokens=8, sequences=1, batched_tokens=8, cache_bytes=2**20, tensor=1
    )
    with ExitStack() as cleanup:
        copy = start_server(settings, tmp_path / "log", cleanup)
        with pytest.raises(UserError, match="before it was ready"):
            copy.wait()
    words, key = json.loads((tmp_path / "seen.json").read_text())
    assert [word for word in words if word.startswith("--host")] == ["--host=127.0.0.1"]
    assert "--middleware=polymath.runtime.engines.vllm_server.RequireKey" in words
    assert not any("trust" in word or key in word for word in words)
    assert len(key) == 64 and key not in (tmp_path / "log").read_text() and key not in repr(copy.facts)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("given", [None, b"", b"Bearer", b"Bearer another", b"wanted"])
def test_no_path_of_the_server_but_its_health_is_served_without_the_key(
    kind: str, given: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "wanted")
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 401

    def ask(path: str, authorization: bytes | None) -> None:
        headers = [] if authorization is None else [(b"authorization", authorization)]
        asyncio.run(RequireKey(app)({"type": kind, "path": path, "headers": headers}, None, send))

    paths = (
        "/v1/models",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/sleep",
        "/server_info",
        "/",
        "//health",
        "/health/",
        "/Health",
    )
    for path in (*paths, "/health"):
        ask(path, given)
    assert reached == ["/health"]
    for path in paths:
        ask(path, b"Bearer wanted")
    assert reached == ["/health", *paths]
