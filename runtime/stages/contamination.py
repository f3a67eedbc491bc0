"""contamination: whether what is trained on from files holds tasks that the run evaluates on.

The evaluations' tasks of all domains are looked for in every trajectory source, the run's demonstrations among them, as soon as
these are written. The report is `contamination.json` in the job's folder; where it is not clean, an event says so, and the run
ends if the spec says `refuse`. The first rank looks.

What it does not do: compare texts by their likeness unless the spec says how alike. Questions that a template makes, as those of
the worlds here, differ in a name or a number and are nearly alike without being the same.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import Contamination, Domain, TrajectorySource
from ..files import write_json
from ..hygiene.contamination import HeldOut, look_into, report, summary
from ..jobs import JobContext
from ..launch.events import EventLog
from ..worlds.registry import open_world
from .evaluate import heldout_tasks

REPORT = "contamination.json"


def run(context: JobContext) -> None:
    """Look for held-out tasks in all training data.

    Raises:
        UserError: there are some, and the spec refuses them (exit 3); or a file cannot be read.
    """
    settings = context.setting("contamination", Contamination)
    found: dict[str, Any] = {}
    if context.is_first_rank:
        found = _look(context, settings)
        write_json(context.folder / REPORT, found)
        if not found["clean"]:
            print(summary(found), flush=True)
            rows = sum(one["contaminated_rows"] for one in found["sources"])
            EventLog(context.run_dir).write("contamination", job=context.job.id, rows=rows, action=settings.action)
    is_dirty = context.any_rank(not found.get("clean", True))
    if is_dirty and settings.action == "refuse":
        raise UserError(
            "training data holds tasks that the run evaluates on, and `evaluate.contamination` refuses them",
            exit_code=ExitCode.SPEC,
            fix=f"take them out of the files that {context.folder / REPORT} names, or write `action: warn`",
        )
    context.finish({"contamination": found} if found else {})


def _look(context: JobContext, settings: Contamination) -> dict[str, Any]:
    heldout = HeldOut(settings.similarity)
    domains = {name: context.setting_of("domains", name, Domain) for name in sorted(context.job.settings["domains"])}
    for name, domain in domains.items():
        world = open_world(context, name, domain)
        heldout.add_tasks(name, world, heldout_tasks(world, name, context.job.settings["episodes"], context.plan.seed))
    files = list(_files(context, domains))
    sources = []
    for number, (url, source) in enumerate(files):
        context.progress(number, len(files), "files looked into")
        sources.append(look_into(url, source, heldout))
    context.progress(len(files), len(files), "files looked into")
    return report(heldout, sources)


def _files(context: JobContext, domains: dict[str, Domain]) -> Iterator[tuple[str, TrajectorySource]]:
    """Where every source lies, and how it reads; rows of any reward."""
    for name, domain in domains.items():
        for number, source in enumerate(domain.trajectories):
            if source.path is not None:
                yield context.source(f"source.{name}.{number}"), replace(source, minimum_reward=None)
            else:
                folder = context.input_folder(f"trajectories.{name}.{number}")
                url = str(folder / f"{name}.{source.name}.jsonl")
                yield url, replace(source, synthesize=None, path=url)
