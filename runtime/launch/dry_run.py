"""`polymath launch --dry-run`: the command and environment of every role of every group of processes; nothing starts."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...compiler.plan import Job, read_plan, read_sources
from ...specs.diagnostics import UserError
from ..abilities import refuse_what_cannot_run
from .machine import check_nodes
from .process import Group, argv, environment
from .safety import refuse_unsafe


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRole:
    """What a role is started with."""

    process: int  # number of its group
    jobs: tuple[str, ...]
    role: str
    devices: int
    argv: tuple[str, ...] | None  # None where launch starts nothing for it
    environment: Mapping[str, str]  # what is set on top of the environment that launch was started in
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """All that a launch would start, and why it would not."""

    roles: tuple[PlannedRole, ...]
    refusals: tuple[str, ...]


def dry_run(plan_folder: Path, *, run_dir: Path | None = None, port: int | None = None) -> DryRun:
    """What a launch of a plan would start, from nothing.

    Raises:
        UserError: the plan was edited, or holds words that the compiler would not write.
    """
    plan, sources = read_plan(plan_folder), read_sources(plan_folder)
    refuse_unsafe(plan)
    run_dir = run_dir or sources.runs_folder / plan.name
    refusals: list[str] = []
    for check in (lambda: refuse_what_cannot_run(plan, sources, plan.jobs), lambda: check_nodes(plan.jobs)):
        try:
            check()
        except UserError as error:
            refusals.append(error.message)
    roles = [
        role
        for number, process in enumerate(plan.processes, start=1)
        for role in _roles(number, tuple(plan.job(job_id) for job_id in process), plan_folder, run_dir, port)
    ]
    return DryRun(roles=tuple(roles), refusals=tuple(refusals))


def _roles(number: int, jobs: tuple[Job, ...], plan_folder: Path, run_dir: Path, port: int | None) -> list[PlannedRole]:
    group = Group(plan_folder=plan_folder, run_dir=run_dir, jobs=jobs, log=run_dir / "logs" / f"process-{number}.log", port=port)
    ids = tuple(job.id for job in jobs)
    found = [
        PlannedRole(
            process=number,
            jobs=ids,
            role="trainer",
            devices=group.role.devices,
            argv=tuple(argv(group)),
            environment=environment(group, {}),
        )
    ]
    for job in jobs:
        for name, role in job.roles.items():
            if name == "trainer":
                continue
            if role.url_env is not None:
                note = f"answers at the URL in ${role.url_env}; nothing is started"
            elif role.devices == 0 or role.engine == "transformers":
                note = "inside the trainer's processes"
            else:
                listen = job.settings["engines"]["listen"]
                note = f"the trainer's ranks start {role.devices // role.tensor} of them, and end them"
                note += f"; they answer at the address in ${listen['address_env']} too" if listen is not None else ""
            found.append(
                PlannedRole(
                    process=number, jobs=(job.id,), role=name, devices=role.devices, argv=None,
                    environment=dict(role.environment), note=note,
                )
            )  # fmt: skip
    return found


def show(planned: DryRun) -> str:
    """For people: each command on a line that a shell would read back as the same words."""
    lines: list[str] = []
    for role in planned.roles:
        lines.append(f"# process {role.process}, {role.role} on {role.devices} devices: {', '.join(role.jobs)}")
        lines += [f"{name}={shlex.quote(value)} \\" for name, value in sorted(role.environment.items())] if role.argv else []
        lines.append(shlex.join(role.argv) if role.argv else f"#   {role.note}")
    for refusal in planned.refusals:
        lines += [f"# {line}" for line in f"launch would refuse this here: {refusal}".splitlines()]
    return "\n".join(lines)
