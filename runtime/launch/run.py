"""`polymath launch`: runs a plan's job graph, and goes on where an earlier launch stopped.

What it does: verifies the plan and the machine, holds the run directory, decides per job, starts each group of processes, shows
how far they are, and turns what the workers left behind into one message and one exit code.
What it does not do: compute anything; a job's own code checks its inputs again when it reads them.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...compiler.plan import Job, Plan, read_plan, read_sources
from ...specs.diagnostics import ExitCode, UserError
from ..abilities import refuse_what_cannot_run
from ..files import published_folder
from ..jobs import DONE, STOP_REQUEST, is_done
from ..report.facts import PLAN_COPY
from .decide import Decision, decide, unfinished
from .events import EventLog, alarm_lines, alarms_of
from .lock import RunLock
from .machine import check_disk, check_folder, check_nodes, check_port
from .outcome import Failure, clear_outcomes, find_failure
from .process import Group, Launcher, LocalTorchrun, Running
from .progress import ProgressView, make_view, read_progress
from .safety import refuse_unsafe
from .services import check_services

POLL_SECONDS = 0.25
PLAN_FILES = ("plan.json", "sources.json", "origins.json", "graph.mmd")


@dataclass(kw_only=True)
class StopRequests:
    """How often someone asked this launch to stop."""

    count: int = field(default=0)

    def handle(self, number: int, frame: object) -> None:
        self.count += 1


def launch_plan(
    plan_folder: Path,
    *,
    run_dir: Path | None = None,
    port: int | None = None,
    launcher: Launcher | None = None,
    stops: StopRequests | None = None,
    view: ProgressView | None = None,
) -> int:
    """Run what is left of a plan. Returns 0, or 7 where it was stopped and can go on.

    Args:
        run_dir: where the run writes; by default `<storage.runs>/<name>` of the spec.
        port: of torchrun's rendezvous; by default a free one.
        launcher: what starts processes; by default torchrun on this machine.
        stops: requests to stop that someone else counts; by default SIGINT and SIGTERM are.
        view: what shows how far it is; by default the terminal.

    Raises:
        UserError: the plan was edited (4), the machine is unfit or the run in use (5), or a job failed (its own code).
    """
    plan = read_plan(plan_folder)
    sources = read_sources(plan_folder)
    usual = sources.runs_folder / plan.name
    run_dir = run_dir or usual
    again = f"polymath launch {plan_folder}" + ("" if run_dir.resolve() == usual.resolve() else f" --run-dir {run_dir}")
    refuse_unsafe(plan)
    refuse_what_cannot_run(plan, sources, plan.jobs)
    check_nodes(plan.jobs)
    check_folder(run_dir)
    with RunLock(run_dir) as lock:
        if port is not None:
            check_port(port)
        lock.wait_for_workers()
        (run_dir / STOP_REQUEST).unlink(missing_ok=True)
        decisions = decide(plan, run_dir)
        check_disk(run_dir, unfinished(decisions))
        check_services(plan, unfinished(decisions), run_dir)
        _keep_plan(plan_folder, run_dir)
        try:
            with contextlib.nullcontext(stops) if stops is not None else stop_requests() as asked:
                launch = _Launch(plan, plan_folder, run_dir, port, launcher or LocalTorchrun(), asked, view or make_view(), again)
                return launch.run(decisions)
        finally:
            (run_dir / STOP_REQUEST).unlink(missing_ok=True)  # it was this launch's, not that of one by hand


def what_became_of_rows(folder: Path) -> list[str]:
    """One line per source that an SFT job read, but for the run's own demonstrations where none was left out or cut; and one for
    each that holds tasks of the evaluations."""
    result = json.loads((folder / "result.json").read_text())
    own = str(folder.parent)
    lines = [
        one["summary"] for one in result.get("sources", ()) if one["filtered"] or one["truncated"] or not one["url"].startswith(own)
    ]
    for one in result.get("contamination", {}).get("sources", ()):
        if one["contaminated_rows"]:
            lines.append(f"{one['source']}: {one['contaminated_rows']} of {one['rows']} rows hold tasks of the evaluations")
    return lines


class _Launch:
    """One launch, from its decisions to its exit code."""

    def __init__(
        self,
        plan: Plan,
        plan_folder: Path,
        run_dir: Path,
        port: int | None,
        launcher: Launcher,
        stops: StopRequests,
        view: ProgressView,
        again: str,
    ) -> None:
        self.plan, self.plan_folder, self.run_dir, self.port = plan, plan_folder, run_dir, port
        self.launcher, self.stops, self.view, self.again = launcher, stops, view, again
        self.events = EventLog(run_dir)

    def run(self, decisions: Sequence[Decision]) -> int:
        try:
            self._announce(decisions)
            jobs_left = {job.id for job in unfinished(decisions)}
            reasons = {decision.job.id: decision.reason for decision in decisions}
            for number, process in enumerate(self.plan.processes, start=1):
                jobs = tuple(self.plan.job(job_id) for job_id in process if job_id in jobs_left)
                if not jobs:
                    continue
                failure, log = self._run_group(number, jobs, reasons)
                self._report()
                if failure:
                    return self._fail(failure, log)
            self._report()
            self.events.write("launch_finished", exit_code=int(ExitCode.OK))
            self.view.say(f"finished: {self.run_dir / 'report.html'}")
            return ExitCode.OK
        finally:
            self.view.stop()

    def _announce(self, decisions: Sequence[Decision]) -> None:
        jobs = [{"id": job.id, "kind": job.kind, "folder": job.folder} for job in self.plan.jobs]
        self.events.write(
            "launch",
            run=self.plan.name,
            recipe_digest=self.plan.recipe_digest,
            pid=os.getpid(),
            host=socket.gethostname(),
            jobs=jobs,
        )
        for decision in decisions:
            if decision.state == "finished":
                self.events.write("job_reused", job=decision.job.id, reason=decision.reason)
            if decision.reason != "to run":
                self.view.say(str(decision))

    def _run_group(self, number: int, jobs: tuple[Job, ...], reasons: dict[str, str]) -> tuple[Failure | None, Path]:
        log = self.run_dir / "logs" / f"process-{number}.log"
        clear_outcomes(self.run_dir, jobs)
        self.view.start(jobs)
        running = self.launcher.start(Group(plan_folder=self.plan_folder, run_dir=self.run_dir, jobs=jobs, log=log, port=self.port))
        try:
            status = self._follow(running, jobs, reasons)
        finally:
            if running.poll() is None:
                running.kill()
        return find_failure(self.run_dir, jobs, status, ended_by_user=self.stops.count > 1), log

    def _follow(self, running: Running, jobs: tuple[Job, ...], reasons: dict[str, str]) -> int:
        """Watch a group until its processes end; its exit status."""
        waiting = list(jobs)
        started, announced = time.time(), False
        asked_to_stop = False
        while True:
            status = running.poll()
            while waiting:
                job = waiting[0]
                folder = self.run_dir / "jobs" / job.folder
                if not announced:
                    self.events.write("job_started", job=job.id, reason=reasons[job.id])
                    announced = True
                self.view.update(job, read_progress(folder))
                if not is_done(folder, job):
                    break
                self.view.update(job, read_progress(folder))  # its last word may be newer than the look before
                finished = (folder / DONE).stat().st_mtime  # not now: several short jobs may have ended since the last look
                seconds = max(0.0, finished - started)
                self.events.write("job_finished", job=job.id, seconds=round(seconds, 3))
                self.view.finish(job, seconds)
                for line in (*what_became_of_rows(folder), *alarm_lines(alarms_of(self.run_dir, job.folder))):
                    self.view.say(f"  {line}")
                waiting.pop(0)
                started, announced = finished, False
            if status is not None:
                return status
            if self.stops.count and not asked_to_stop:
                asked_to_stop = True
                (self.run_dir / STOP_REQUEST).touch()
                self.view.say("stopping at the end of this step; ask again to end at once")
            if self.stops.count > 1:
                running.kill()
            time.sleep(POLL_SECONDS)

    def _fail(self, failure: Failure, log: Path) -> int:
        message = f"job `{failure.job.id}`: {failure.message.removeprefix('error: ')}"
        if failure.exit_code == ExitCode.INTERRUPTED:
            self.events.write("interrupted", job=failure.job.id, message=failure.message)
        else:
            self.events.write(
                "job_failed", job=failure.job.id, exit_code=int(failure.exit_code), message=failure.message, log=str(log)
            )
        self.events.write("launch_finished", exit_code=int(failure.exit_code))
        if failure.exit_code == ExitCode.INTERRUPTED and self.stops.count:
            self.view.say(f"{message}\nto go on: {self.again}")
            return ExitCode.INTERRUPTED
        fix = f"log: {log}; what was finished is kept: {self.again}"
        raise UserError(message, exit_code=failure.exit_code, fix=fix)

    def _report(self) -> None:
        from ..report.page import write_report

        write_report(self.run_dir)


def _keep_plan(plan_folder: Path, run_dir: Path) -> None:
    """Copy the plan into the run, so that the run can be read and reported wherever it lies."""
    if plan_folder.resolve() == (run_dir / PLAN_COPY).resolve():
        return
    with published_folder(run_dir / PLAN_COPY) as staging:
        shutil.copytree(plan_folder / "jobs", staging / "jobs")
        for name in PLAN_FILES:
            if (plan_folder / name).exists():
                shutil.copy2(plan_folder / name, staging / name)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Count SIGINT and SIGTERM instead of dying of them."""
    stops = StopRequests()
    earlier = {number: signal.signal(number, stops.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stops
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
