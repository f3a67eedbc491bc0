"""What a run's folder says, gathered for the scoreboard and the page. Reads; decides nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compiler.plan import Job, Plan, read_plan
from ...specs.build import is_finite_number
from ...specs.diagnostics import ExitCode, UserError
from ..jobs import is_done
from ..launch.events import alarms_of, job_seconds

PLAN_COPY = "plan"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFacts:
    """One job as its folder tells."""

    job: Job
    finished: bool
    seconds: float | None
    result: Mapping[str, Any] | None  # of a finished job
    metrics: tuple[Mapping[str, Any], ...]  # one per optimizer step
    alarms: tuple[Mapping[str, Any], ...]  # events of those that fired, in order of steps

    def curve(self, name: str) -> list[tuple[float, float]]:
        """The points (step, value) of one metric, where it is a finite number."""
        points = [(line.get("step"), line.get(name)) for line in self.metrics]
        return [(float(step), float(value)) for step, value in points if is_finite_number(step) and is_finite_number(value)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """A run."""

    plan: Plan
    jobs: Mapping[str, JobFacts]

    def settings(self, name: str) -> Mapping[str, Any]:
        """A block of settings from the first job that has it; empty where none has."""
        return next((facts.job.settings[name] for facts in self.jobs.values() if name in facts.job.settings), {})

    @property
    def domains(self) -> dict[str, Mapping[str, Any]]:
        """Every domain that some job uses, in the order of the plan."""
        found: dict[str, Mapping[str, Any]] = {}
        for facts in self.jobs.values():
            for name, domain in facts.job.settings.get("domains", {}).items():
                found.setdefault(name, domain)
        return found

    @property
    def routing(self) -> Mapping[str, str]:
        """Teacher by domain."""
        return self.settings("routing")


def read_run(run_dir: Path) -> RunFacts:
    """Gather a run's facts, finished or not.

    Raises:
        UserError: the folder is not a run.
    """
    if not (run_dir / PLAN_COPY / "plan.json").exists():
        raise UserError(f"{run_dir} is not the folder of a run", exit_code=ExitCode.USAGE, fix="polymath report runs/<name>")
    plan = read_plan(run_dir / PLAN_COPY)
    seconds = job_seconds(run_dir, {job.id: job.folder for job in plan.jobs})
    return RunFacts(plan=plan, jobs={job.id: _job_facts(run_dir, job, seconds.get(job.id)) for job in plan.jobs})


def _job_facts(run_dir: Path, job: Job, seconds: float | None) -> JobFacts:
    folder = run_dir / "jobs" / job.folder
    finished = is_done(folder, job)
    result_path = folder / "result.json"
    return JobFacts(
        job=job,
        finished=finished,
        seconds=seconds,
        result=json.loads(result_path.read_text()) if finished and result_path.exists() else None,
        metrics=tuple(_lines(folder / "metrics.jsonl")),
        alarms=tuple(alarms_of(run_dir, job.folder)),
    )


def _lines(path: Path) -> list[Mapping[str, Any]]:
    if not path.exists():
        return []
    lines: list[Mapping[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line of a killed job may be half a line
        if isinstance(line, dict):
            lines.append(line)
    return lines
