"""Alarms are lines of the run's event log, and whoever looks at the run is told of them."""

from pathlib import Path
from typing import Any

from polymath.compiler.plan import read_plan
from polymath.runtime.launch.events import EventLog, alarm_lines, alarms_of, read_events
from polymath.runtime.launch.run import launch_plan
from polymath.runtime.launch.status import run_status


def fire(run_dir: Path, folder: str, step: int, value: float, **changes: Any) -> None:
    facts = {"alarm": "coverage_p05", "domain": "search", "side": "below", "threshold": 0.5, "action": "warn", **changes}
    EventLog(run_dir).write("alarm", job="distill", folder=folder, step=step, value=value, **facts)


def test_a_step_taken_again_counts_once_and_other_jobs_do_not_count(tmp_path: Path) -> None:
    for step, value in ((3, 0.4), (4, 0.3), (3, 0.45)):
        fire(tmp_path, "distill-a", step, value)
    fire(tmp_path, "distill-b", 9, 0.1)
    fire(tmp_path, "distill-a", 4, 0.9, alarm="truncated", domain="tools", side="above", threshold=0.2, action="skip")
    fired = alarms_of(tmp_path, "distill-a")
    assert [(one["step"], one["value"]) for one in fired] == [(3, 0.45), (4, 0.3), (4, 0.9)]
    assert alarm_lines(fired) == [
        "alarm coverage_p05 (warn), domain search: below 0.5 in 2 steps, 3 to 4; 0.3 in the last",
        "alarm truncated (skip), domain tools: above 0.2 in step 4; 0.9 in the last",
    ]


def test_launch_and_status_tell_of_alarms_and_a_job_at_work_is_still_at_work(
    plan_folder: Path, run_dir: Path, launcher: Any, capsys: Any
) -> None:
    plan = read_plan(plan_folder)
    start = launcher.start

    def start_and_fire(group: Any) -> Any:
        running = start(group)
        if "distill" in [job.id for job in group.jobs]:
            fire(run_dir, plan.job("distill").folder, 3, 0.25)
        return running

    launcher.start = start_and_fire
    assert launch_plan(plan_folder, launcher=launcher) == 0
    line = "alarm coverage_p05 (warn), domain search: below 0.5 in step 3; 0.25 in the last"
    assert f"  {line}" in capsys.readouterr().out.splitlines()
    jobs = {job["job"]: job for job in run_status(run_dir)["jobs"]}
    assert jobs["distill"]["alarms"] == [line] and jobs["sft"]["alarms"] == []
    assert {job["state"] for job in jobs.values()} == {"finished"}
    assert [event["domain"] for event in read_events(run_dir) if event["event"] == "alarm"] == ["search"]


def test_a_job_whose_last_word_is_an_alarm_was_interrupted_like_any_other(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("launch", jobs=[{"id": "distill", "kind": "distill", "folder": "distill-a"}])
    log.write("job_started", job="distill", reason="to run")
    fire(tmp_path, "distill-a", 3, 0.25)
    (job,) = run_status(tmp_path)["jobs"]
    assert job["state"] == "interrupted" and job["alarms"]
