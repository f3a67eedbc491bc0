"""`polymath compile --show PATH`: a value of the resolved spec or of a job, and where it came from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..specs.build import show_path, suggest, to_json
from ..specs.diagnostics import ExitCode, UserError
from .plan import Job, Plan
from .provenance import Origins, leaves


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One value. `path` is its path of the spec; of a job, `jobs.<id>.` and the path in the job's file."""

    path: str
    value: Any
    origin: str


def show(plan: Plan, origins: Origins, wanted: str) -> list[Shown]:
    """The value at a path, or all below it.

    Raises:
        UserError: there is nothing at the path.
    """
    everything = {path: Shown(path=path, value=one.value, origin=one.origin) for path, one in origins.spec.items()}
    for job in plan.jobs:
        for path, value in job_values(job).items():
            text = origins.jobs.get(job.id, {}).get(path, "lower")
            origin = f"{text}, {origins.spec[text].origin}" if text in origins.spec else text
            everything[f"jobs.{job.id}.{path}"] = Shown(path=f"jobs.{job.id}.{path}", value=value, origin=origin)
    normal = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", wanted) if not wanted.startswith("jobs.") else wanted
    found = [one for path, one in everything.items() if path == normal or path.startswith((f"{normal}.", f"{normal}["))]
    if not found:
        raise UserError(f"nothing is at `{wanted}`", exit_code=ExitCode.USAGE, fix=_hint(wanted, everything))
    return found


def job_values(job: Job) -> dict[str, Any]:
    """What `origins.json` knows of a job: its settings, seed, roles and torchtitan's settings, by path."""
    data = to_json({"settings": job.settings, "seed": job.seed, "roles": job.roles})
    told = {f"titan.{one.path}": one.value for one in job.titan}
    return {**{show_path(path): value for path, value in leaves(data)}, **told}


def _hint(wanted: str, everything: Mapping[str, Shown]) -> str:
    last = wanted.rpartition(".")[2]
    same = [path for path in everything if path.rpartition(".")[2] == last]
    if same:
        return f"`{last}` exists at {', '.join(f'`{path}`' for path in same[:3])}"
    parents = {path[: dot.start()] for path in everything for dot in re.finditer(r"\.", path)}
    guess = suggest(wanted, [*sorted(parents), *everything])
    return f"did you mean `{guess}`?" if guess else "paths start with a field of the spec, such as `student`, or with `jobs.<id>`"
