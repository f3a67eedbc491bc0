"""Launching: what runs, what is reused, and how each ending is told."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from polymath.compiler.plan import read_plan
from polymath.runtime.data.trajectories import SourceReport
from polymath.runtime.files import write_json
from polymath.runtime.jobs import TOLD_ELSEWHERE, Outcome
from polymath.runtime.launch import machine
from polymath.runtime.launch.events import EventLog, read_events
from polymath.runtime.launch.lock import RunLock
from polymath.runtime.launch.outcome import find_failure
from polymath.runtime.launch.run import launch_plan, what_became_of_rows
from polymath.runtime.launch.status import run_status
from polymath.runtime.report.page import write_report
from polymath.specs.diagnostics import UserError


def ran(run_dir: Path) -> list[str]:
    return (run_dir / "ran").read_text().split() if (run_dir / "ran").exists() else []


def named_events(run_dir: Path) -> list[tuple[str, str | None]]:
    return [(event["event"], event.get("job")) for event in read_events(run_dir)]


def test_every_job_runs_once_and_a_second_launch_reuses_all(plan_folder: Path, run_dir: Path, launcher: Any, capsys: Any) -> None:
    assert launch_plan(plan_folder, launcher=launcher) == 0
    assert ran(run_dir) == ["import", "sft", "distill"]
    capsys.readouterr()
    assert launch_plan(plan_folder, launcher=launcher) == 0
    assert ran(run_dir) == ["import", "sft", "distill"]
    assert "sft: finished earlier, reused" in capsys.readouterr().out
    assert named_events(run_dir)[-5:] == [
        ("launch", None),
        ("job_reused", "import"),
        ("job_reused", "sft"),
        ("job_reused", "distill"),
        ("launch_finished", None),
    ]
    assert (run_dir / "report.html").exists() and (run_dir / "scoreboard.json").exists()


def test_the_first_failing_ranks_message_is_the_one_shown_and_its_code_the_launchs(
    plan_folder: Path, run_dir: Path, launcher: Any, behave: Any
) -> None:
    behave(sft="fail")
    with pytest.raises(UserError) as caught:
        launch_plan(plan_folder, launcher=launcher)
    assert caught.value.exit_code == 3
    assert "data.jsonl row 7 is not JSON" in caught.value.message and "a peer left" not in caught.value.message
    assert str(run_dir / "logs" / "process-1.log") in str(caught.value.fix)
    assert ran(run_dir) == ["import", "sft"]
    states = {job["job"]: job["state"] for job in run_status(run_dir)["jobs"]}
    assert states == {"import": "finished", "sft": "failed", "distill": "waiting"}


def test_a_rank_that_leaves_for_the_sake_of_another_is_not_the_one_that_is_shown(plan_folder: Path, run_dir: Path) -> None:
    job = next(one for one in read_plan(plan_folder).jobs if one.id == "sft")
    folder = run_dir / "jobs" / job.folder
    folder.mkdir(parents=True)
    Outcome(job="sft", rank=1, exit_code=7, message=f"the engine of another rank does not answer: {TOLD_ELSEWHERE}").write(folder)
    Outcome(job="sft", rank=0, exit_code=7, message="the engine does not answer: its process has ended").write(folder)
    failure = find_failure(run_dir, [job], status=1, ended_by_user=False)
    assert failure is not None and failure.message == "the engine does not answer: its process has ended"


def test_after_a_failure_the_next_launch_goes_on_with_the_failed_job(
    plan_folder: Path, run_dir: Path, launcher: Any, behave: Any
) -> None:
    behave(sft="fail")
    with pytest.raises(UserError):
        launch_plan(plan_folder, launcher=launcher)
    behave()
    assert launch_plan(plan_folder, launcher=launcher) == 0
    assert ran(run_dir) == ["import", "sft", "sft", "distill"]


def test_workers_killed_without_a_word_mean_7_where_a_checkpoint_is_left_and_the_next_launch_says_where_it_goes_on(
    plan_folder: Path, run_dir: Path, launcher: Any, behave: Any, capsys: Any
) -> None:
    behave(sft="vanish")
    with pytest.raises(UserError) as caught:
        launch_plan(plan_folder, launcher=launcher)
    assert caught.value.exit_code == 7
    behave()
    assert launch_plan(plan_folder, launcher=launcher) == 0
    assert "sft: goes on from step 20 (checkpoint step-20)" in capsys.readouterr().out


def test_a_stop_is_asked_for_at_a_step_boundary_and_ends_in_7(
    plan_folder: Path, run_dir: Path, launcher: Any, behave: Any, capsys: Any
) -> None:
    behave(sft="wait")
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert launch_plan(plan_folder, launcher=launcher) == 7
    assert "stopped after step 3" in capsys.readouterr().out
    behave()
    assert launch_plan(plan_folder, launcher=launcher) == 0  # the request of the last launch is not this one's


def test_a_second_stop_ends_at_once(plan_folder: Path, run_dir: Path, launcher: Any, behave: Any) -> None:
    behave(sft="hang")
    for delay in (1.5, 2.0):
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    assert launch_plan(plan_folder, launcher=launcher) == 7
    assert time.monotonic() - started < 10


def test_a_changed_output_that_a_job_would_read_is_refused(plan_folder: Path, run_dir: Path, launcher: Any, behave: Any) -> None:
    behave(distill="fail")
    with pytest.raises(UserError):
        launch_plan(plan_folder, launcher=launcher)
    result = next((run_dir / "jobs").glob("sft-*")) / "result.json"
    result.write_text(result.read_text().replace("sft", "tfs"))  # of the same size
    behave()
    with pytest.raises(UserError, match="sha256") as caught:
        launch_plan(plan_folder, launcher=launcher)
    assert caught.value.exit_code == 4 and ran(run_dir) == ["import", "sft", "distill"]


def test_an_output_of_another_size_makes_its_job_run_again(plan_folder: Path, run_dir: Path, launcher: Any, capsys: Any) -> None:
    assert launch_plan(plan_folder, launcher=launcher) == 0
    (next((run_dir / "jobs").glob("sft-*")) / "result.json").write_text("{}")
    assert launch_plan(plan_folder, launcher=launcher) == 0
    assert ran(run_dir) == ["import", "sft", "distill", "sft"]
    assert "sft: runs again: its result.json has another size than it wrote" in capsys.readouterr().out


def test_an_edited_plan_is_refused_before_anything_is_written(plan_folder: Path, run_dir: Path, launcher: Any) -> None:
    path = plan_folder / "jobs" / "sft.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError) as caught:
        launch_plan(plan_folder, launcher=launcher)
    assert caught.value.exit_code == 4 and not run_dir.exists()


def test_a_port_in_use_is_refused_before_anything_starts(plan_folder: Path, run_dir: Path, launcher: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            launch_plan(plan_folder, port=port, launcher=launcher)
    assert caught.value.exit_code == 5 and not ran(run_dir)
    assert launch_plan(plan_folder, port=port, launcher=launcher) == 0


def test_a_port_that_is_none_is_refused(plan_folder: Path, launcher: Any) -> None:
    with pytest.raises(UserError) as caught:
        launch_plan(plan_folder, port=123456, launcher=launcher)
    assert caught.value.exit_code == 5


def test_a_disk_with_too_little_room_is_refused_with_both_numbers(
    plan_folder: Path, run_dir: Path, launcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(UserError, match=r"64 MiB needed, 3 MiB free") as caught:
        launch_plan(plan_folder, launcher=launcher)
    assert caught.value.exit_code == 5 and not ran(run_dir)


def test_a_run_directory_that_cannot_be_made_is_refused(plan_folder: Path, tmp_path: Path, launcher: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        launch_plan(plan_folder, run_dir=tmp_path / "file" / "run", launcher=launcher)
    assert caught.value.exit_code == 5


LAUNCH = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("launch_conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec); spec.loader.exec_module(conftest)
from polymath.runtime.launch.run import launch_plan, what_became_of_rows
launch_plan(Path(sys.argv[2]), launcher=conftest.PythonLauncher())
"""


def start_launch(plan_folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(Path(__file__).with_name("conftest.py")), str(plan_folder)])


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_second_launch_is_refused_and_says_who_holds_the_run(
    plan_folder: Path, run_dir: Path, launcher: Any, behave: Any
) -> None:
    behave(sft="hang")
    first = start_launch(plan_folder)
    try:
        wait_until(lambda: "sft" in ran(run_dir))
        with pytest.raises(UserError) as caught:
            launch_plan(plan_folder, launcher=launcher)
        assert caught.value.exit_code == 5
        assert f"process {first.pid} on {socket.gethostname()} since 20" in caught.value.message
        wait_until(lambda: {job["job"]: job["state"] for job in run_status(run_dir)["jobs"]}["sft"] == "running")
        status = run_status(run_dir)
        assert status["running"] and status["pid"] == first.pid
    finally:
        first.kill()
        first.wait()


def test_workers_leave_when_the_launcher_is_killed_and_the_next_launch_goes_on(
    plan_folder: Path, run_dir: Path, launcher: Any, behave: Any
) -> None:
    behave(sft="hang")
    first = start_launch(plan_folder)
    wait_until(lambda: "sft" in ran(run_dir))
    first.kill()
    first.wait()
    assert not run_status(run_dir)["running"]
    behave()
    started = time.monotonic()
    assert launch_plan(plan_folder, launcher=launcher) == 0  # waits for the workers' lock, so they must have left
    assert time.monotonic() - started < 30
    assert ran(run_dir) == ["import", "sft", "sft", "distill"]
    states = {job["job"]: job["state"] for job in run_status(run_dir)["jobs"]}
    assert set(states.values()) == {"finished"}


def test_a_run_on_a_host_that_is_gone_is_not_running(plan_folder: Path, run_dir: Path, launcher: Any) -> None:
    assert launch_plan(plan_folder, launcher=launcher) == 0
    holder = {"pid": 1, "host": f"not-{socket.gethostname()}", "since": "2026-01-01T00:00:00+00:00", "birth": 1}
    (run_dir / "lock").write_text(json.dumps(holder))  # a launch that was killed with its container leaves its name
    assert not run_status(run_dir)["running"]
    with (run_dir / "lock").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert run_status(run_dir)["running"]


def test_a_job_at_work_is_running_whatever_else_it_tells(plan_folder: Path, run_dir: Path, launcher: Any) -> None:
    assert launch_plan(plan_folder, launcher=launcher) == 0
    with RunLock(run_dir):
        events = EventLog(run_dir)
        jobs = [event for event in read_events(run_dir) if event["event"] == "launch"][-1]["jobs"]
        events.write("launch", jobs=jobs)
        events.write("job_started", job="sft")
        events.write("contamination", job="sft", rows=3, action="warn")
        next((run_dir / "jobs").glob("sft-*/DONE.json")).unlink()
        assert {job["job"]: job["state"] for job in run_status(run_dir)["jobs"]}["sft"] == "running"


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", "{}", '{"files": []}', '{"files": {"result.json": 1}}', "\x00", '{"done":']
)
def test_no_damaged_file_of_a_run_is_taken_for_a_bug(
    text: str, plan_folder: Path, run_dir: Path, launcher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_plan(plan_folder, launcher=launcher) == 0
    (folder,) = (run_dir / "jobs").glob("distill-*")
    for name in ("DONE.json", "progress.json", "rollout.json", "metrics.jsonl", "outcome.0.json"):
        (folder / name).write_text(text)
    with (run_dir / "events.jsonl").open("a") as log:
        log.write(f'{text}\n{{"time": "2026-01-01T00:00:00+00:00"}}\n')
    run_status(run_dir)
    write_report(run_dir)
    capsys.readouterr()
    assert launch_plan(plan_folder, launcher=launcher) == 0
    assert "distill: runs again: its DONE.json cannot be read" in capsys.readouterr().out


def test_half_a_line_in_the_event_log_harms_nobody(plan_folder: Path, run_dir: Path, launcher: Any) -> None:
    assert launch_plan(plan_folder, launcher=launcher) == 0
    before = len(list(read_events(run_dir)))
    with (run_dir / "events.jsonl").open("a") as log:
        log.write('{"time": "2026-01-01T0')
    assert launch_plan(plan_folder, launcher=launcher) == 0
    events = list(read_events(run_dir))
    assert len(events) == before + 5
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    assert sum(1 for line in lines if not line.endswith("}")) == 1 and json.loads(lines[-1])["event"] == "launch_finished"


def test_what_became_of_every_users_file_is_told_and_of_own_demonstrations_only_losses(tmp_path: Path) -> None:
    own = str(tmp_path / "jobs" / "synthesize-1" / "trajectories" / "tools.default.jsonl")
    reports = [
        SourceReport(url="a.jsonl", rows=5, kept=3, filtered=Counter({"reward below 1": 2})),
        SourceReport(url="b.jsonl", rows=4, kept=4),
        SourceReport(url=own, rows=9, kept=9),
    ]
    folder = tmp_path / "jobs" / "sft-1"
    write_json(folder / "result.json", {"sources": [report.as_json() for report in reports]})
    assert what_became_of_rows(folder) == [
        "a.jsonl: kept 3 of 5 rows, left out 2 (reward below 1)",
        "b.jsonl: kept 4 of 4 rows",
    ]
