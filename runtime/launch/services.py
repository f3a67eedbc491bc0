"""Services that a plan needs and does not start: whether they answer, before a device is used."""

from collections.abc import Sequence
from pathlib import Path

from ...compiler.plan import Job, Plan
from ...specs.build import from_json
from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Engines
from ..engines.endpoint import HttpClient, Patience, ServiceFailure, endpoint_of, read_json
from ..jobs import is_done

LOOK = Patience(attempts=2, unreadable=1, answer_seconds=10.0, total_seconds=20.0)
MOST_BYTES = 1 << 20
TEACHER = "teacher."


def check_services(plan: Plan, jobs: Sequence[Job], run_dir: Path) -> None:
    """Refuse a launch whose teachers are trained, and are served by somebody who does not answer.

    Raises:
        UserError: exit code 5; names every service that does not answer.
    """
    problems = [problem for job in jobs for problem in silent_services(plan, job, run_dir)]
    if problems:
        fix = "start them on the teachers' folders, and launch again"
        raise UserError("\n".join(["services do not answer:", *problems]), exit_code=ExitCode.UNFIT, fix=fix)


def silent_services(plan: Plan, job: Job, run_dir: Path) -> list[str]:
    """What is wrong with the teachers that somebody serves for a job, as far as they are trained. The job itself looks closer.

    Raises:
        UserError: exit code 5; the environment does not say where one answers.
    """
    problems: list[str] = []
    for role in job.roles:
        if not role.startswith(TEACHER):
            continue
        name = role.removeprefix(TEACHER)
        service = from_json(Engines, job.settings["engines"]).teachers[name]
        endpoint = endpoint_of(service, f"engines.teachers.{name}")
        producer = plan.job(str(job.inputs[role].job))
        if not is_done(run_dir / "jobs" / producer.folder, producer):
            continue  # nobody can serve it yet
        try:
            HttpClient(endpoint, LOOK, at_once=1).ask(f"{endpoint.path}/models", None, read_json, most_bytes=MOST_BYTES)
        except ServiceFailure as failure:
            problems.append(f"  {role} at {endpoint} ({job.id}): {failure}")
    return problems
