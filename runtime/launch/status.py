"""How a run stands, while it runs or after it ended: read from its files alone."""

import json as json_module
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...compiler.plan import read_plan, read_sources
from ...specs.diagnostics import ExitCode, UserError
from ..jobs import DONE
from .decide import last_checkpoint
from .events import alarm_lines, alarms_of, job_seconds, read_events, wait_lines
from .lock import is_running, read_holder
from .progress import duration, read_progress

OF_JOBS = ("job_started", "job_reused", "job_finished", "job_failed", "interrupted")  # events that say what became of a job


def print_status(folder: Path, json: bool = False) -> None:
    """Print a table of a run's jobs, or the same as JSON. `folder` is a run directory or a plan."""
    status = run_status(find_run(folder))
    if json:
        print(json_module.dumps(status, indent=2, sort_keys=True, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    running = f"running (process {status['pid']})" if status["running"] else "not running"
    console.print(Text(f"{status['run']}: {running}"))
    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "step", "loss", "time"):
        table.add_column(name, justify="right" if name in ("step", "loss", "time") else "left")
    for job in status["jobs"]:
        step = "" if job["done"] is None else f"{job['done']}/{job['total']} {job['unit']}"
        loss = "" if job["loss"] is None else f"{job['loss']:.4f}"
        seconds = "" if job["seconds"] is None else duration(job["seconds"])
        table.add_row(*[Text(cell) for cell in (job["job"], job["state"], step, loss, seconds)])
    console.print(table)
    for job in status["jobs"]:
        if job["message"]:
            console.print(Text(f"{job['job']}: {job['message']}"))
        for line in (*job["alarms"], *job["waits"]):
            console.print(Text(f"{job['job']}: {line}"))


def find_run(folder: Path) -> Path:
    """The run directory that a folder is, or that a plan writes to.

    Raises:
        UserError: it is neither, or the plan was never launched.
    """
    if (folder / "events.jsonl").exists():
        return folder
    if not (folder / "plan.json").exists():
        raise UserError(f"{folder} is neither a run nor a plan", exit_code=ExitCode.USAGE, fix="polymath status runs/<name>")
    run_dir = read_sources(folder).runs_folder / read_plan(folder).name
    if not (run_dir / "events.jsonl").exists():
        raise UserError(f"{folder} was not launched yet", exit_code=ExitCode.USAGE, fix=f"polymath launch {folder}")
    return run_dir


def run_status(run_dir: Path) -> dict[str, Any]:
    """Facts of a run: `run`, `running`, `pid` and `jobs`, each with state, step, loss, seconds, message, alarms, and services
    that it waits for.

    States: finished, running, failed, interrupted, waiting.
    """
    running = is_running(run_dir)
    jobs: list[dict[str, str]] = []
    last: dict[str, dict[str, Any]] = {}
    for event in read_events(run_dir):
        if event["event"] == "launch":
            jobs, last = event["jobs"], {}
        elif event["event"] in OF_JOBS:
            last[event["job"]] = event
    seconds = job_seconds(run_dir, {job["id"]: job["folder"] for job in jobs}, until=datetime.now(UTC) if running else None)
    holder = read_holder(run_dir)
    return {
        "run": str(run_dir),
        "running": running,
        "pid": holder["pid"] if running and holder else None,
        "jobs": [_job_status(run_dir, job, last.get(job["id"]), seconds, running) for job in jobs],
    }


def _job_status(
    run_dir: Path, job: dict[str, str], event: dict[str, Any] | None, seconds: dict[str, float], running: bool
) -> dict[str, Any]:
    folder = run_dir / "jobs" / job["folder"]
    name = event["event"] if event else None
    message = None
    if (folder / DONE).exists():
        state = "finished"
    elif name == "job_started" and running:
        state = "running"
    elif name == "job_failed" and event is not None:
        state, message = "failed", event["message"]
    elif name in ("job_started", "interrupted"):
        state, step = "interrupted", last_checkpoint(folder)
        message = "starts again at the next launch" if step is None else f"goes on from step {step} at the next launch"
    else:
        state = "waiting"
    progress = read_progress(folder)
    return {
        "job": job["id"],
        "kind": job["kind"],
        "state": state,
        "done": progress.done if progress else None,
        "total": progress.total if progress else None,
        "unit": progress.unit if progress else None,
        "loss": progress.loss if progress else None,
        "seconds": seconds.get(job["id"]),
        "message": message,
        "alarms": alarm_lines(alarms_of(run_dir, folder.name)),
        "waits": wait_lines(run_dir, folder.name) if state == "running" else [],
    }
