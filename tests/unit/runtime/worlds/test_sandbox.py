"""Each test attacks one property of the sandbox."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from polymath.runtime.worlds import sandbox
from polymath.runtime.worlds.sandbox import OUTPUT_BYTES, PROCESSES, Ran, run_python
from polymath.specs.diagnostics import ExitCode, UserError


def run(source: str, *, seconds: float = 10.0, memory_mib: int = 256) -> Ran:
    return run_python(source, seconds=seconds, memory_mib=memory_mib)


def test_a_harmless_program_runs_to_its_end() -> None:
    assert run("import json\nprint(json.dumps([1 + 1]))") == Ran(status="ok", output="[2]\n")


def test_an_error_is_shown_and_counts_as_failed() -> None:
    ran = run("1 / 0")
    assert ran.status == "failed"
    assert "ZeroDivisionError" in ran.output


def test_an_endless_loop_ends_in_time() -> None:
    begin = time.monotonic()
    assert run("while True: pass", seconds=1.0).status == "timeout"
    assert time.monotonic() - begin < 5


def test_sleeping_counts_as_time() -> None:
    assert run("import time\ntime.sleep(60)", seconds=1.0).status == "timeout"


def test_a_program_that_ignores_its_end_ends_all_the_same() -> None:
    source = "import signal, time\nfor n in range(1, 32):\n  if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)"
    assert run(source, seconds=1.0).status == "timeout"


def test_a_memory_bomb_is_refused_its_memory() -> None:
    ran = run("x = bytearray(2 * 1024**3)", memory_mib=128)
    assert ran.status == "failed"
    assert "MemoryError" in ran.output


def test_a_fork_bomb_gets_few_processes_and_leaves_none() -> None:
    mark = f"bomb{os.getpid()}{time.monotonic_ns()}"
    source = f"""
import os, time
started = 0
while started < 1000:
    try:
        if os.fork() == 0:
            time.sleep(60)  # {mark}
    except BlockingIOError:
        break
    started += 1
print(started, flush=True)
"""
    ran = run(source, seconds=3.0)
    assert ran.status in ("ok", "timeout")
    assert int(ran.output.split()[0]) < PROCESSES
    time.sleep(0.2)
    assert len(list_sandboxed()) == 0


def test_a_bomb_whose_children_fork_again_ends_in_time() -> None:
    begin = time.monotonic()
    run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", seconds=1.0)
    assert time.monotonic() - begin < 10
    time.sleep(0.2)
    assert len(list_sandboxed()) == 0


def test_nothing_outlives_the_program_that_started_it() -> None:
    ran = run("import os, time\nif os.fork() == 0:\n  os.setsid()\n  os.close(1); os.close(2)\n  time.sleep(60)\nprint('gone')")
    assert ran.output == "gone\n"
    time.sleep(0.2)
    assert len(list_sandboxed()) == 0


def test_a_server_of_the_host_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)\nprint('reached')")
    assert ran.status == "failed"
    assert "Connection refused" in ran.output or "unreachable" in ran.output  # by its own loopback, if it has one


def test_there_is_no_network_but_its_own_loopback() -> None:
    ran = run("import socket\nprint([name for _, name in socket.if_nameindex()])")
    assert ran.output.strip() in ("['lo']", "[]")


def test_home_and_the_host_s_files_are_not_there(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    places = [str(Path.home() / ".bashrc"), str(Path(__file__).resolve()), str(secret), "/etc/passwd", "/proc/1/environ"]
    ran = run(f"import os\nprint([place for place in {places!r} if os.path.exists(place)], os.environ.get('HOME'))")
    assert ran.output == "[] None\n"


def test_variables_of_the_environment_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    ran = run("import os\nprint(sorted(os.environ))")
    assert ran.status == "ok"
    assert "SECRET_TOKEN" not in ran.output


def test_nothing_outside_its_scratch_folder_can_be_written(tmp_path: Path) -> None:
    places = ["/usr/x", "/x", "/etc/x", str(Path(os.__file__).with_name("x")), str(tmp_path / "x")]
    source = f"""
import os
written = []
for place in {places!r}:
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        open(place, 'w').write('x')
        written.append(place)
    except OSError:
        pass
open('/tmp/fine', 'w').write('x')
print(written)
"""
    ran = run(source)
    assert ran.status == "ok", ran.output
    assert not (tmp_path / "x").exists()
    assert not any(Path(place).exists() for place in places)


def test_a_big_file_is_refused() -> None:
    ran = run("open('/tmp/small', 'w').write('x')\nprint('small')\nopen('/tmp/big', 'w').write('x' * 10**7)\nprint('big')")
    assert ran.status == "failed"
    assert "small" in ran.output and "File too large" in ran.output


def test_endless_output_is_cut_off() -> None:
    ran = run("while True: print('x' * 1000)")
    assert ran.status == "output"
    assert len(ran.output) == OUTPUT_BYTES


def test_the_program_runs_as_nobody_of_the_host() -> None:
    ran = run("import os\ntry:\n  os.setuid(0); print('root')\nexcept OSError: print(os.getuid() > 0)")
    assert ran.output == "True\n"


def test_without_a_sandbox_programs_are_refused_unless_the_settings_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_isolation", lambda: None)
    with pytest.raises(UserError) as refusal:
        run("print(1)")
    assert refusal.value.exit_code == ExitCode.UNFIT
    assert refusal.value.fix is not None and "bubblewrap" in refusal.value.fix
    assert run_python("print(1)", seconds=5, memory_mib=256, allow_unsandboxed=True) == Ran(status="ok", output="1\n")


def list_sandboxed() -> list[str]:
    """Processes that a sandbox of this test run has left behind."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if "resource.setrlimit" in line or "RLIMIT_" in line]
