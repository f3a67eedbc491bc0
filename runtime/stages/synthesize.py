"""synthesize: the worlds' solvers write demonstrations, which SFT jobs then read like any user's JSONL.

For every domain and every source that synthesizes:
  1. take the domain's training tasks, the same ones that rollouts draw from; no held-out task is ever demonstrated;
  2. go through them in a shuffled order, again and again until there are enough demonstrations, each by a solver of its own seed;
  3. write one line per demonstration to `trajectories/<domain>.<source>.jsonl`.
Ranks write every n-th demonstration, and the first rank puts them back in order: the files do not depend on the number of ranks.

A world that writes its own tasks is played with itself instead (`self_play.py`): every line is an episode that passed all checks.
What models play is a job of its own, of this kind too, after those that train the models.
"""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ...specs.generators import GENERATOR_WORLDS
from ...specs.model import Domain, TrajectorySource
from ..files import published_folder, sync_folder
from ..jobs import JobContext
from ..knowledge.records import TrajectoryRecord
from ..knowledge.selfplay import Report
from ..worlds.demonstrations import demonstrate
from ..worlds.protocol import Task, World, WorldError
from ..worlds.registry import open_world
from .on_policy import derived_seed
from .self_play import Source, play

PARTS = ".staging-parts"
PROGRESS_EVERY = 200  # demonstrations


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One file to write."""

    name: str
    domain: str
    block: Domain
    source: TrajectorySource
    world: World | None  # None where it is played with itself
    tasks: list[Task]


def run(context: JobContext) -> None:
    """Write every demonstration of the spec."""
    assignments = list(_assignments(context))
    total = sum(one.source.synthesize or 0 for one in assignments)
    parts = context.folder / PARTS
    own = parts / str(context.rank)
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    done = 0
    self_played: dict[str, Any] = {}
    for one in assignments:
        count = one.source.synthesize or 0
        if one.world is None:
            self_played[one.name] = _self_play(context, one, parts, own / one.name, done, total)
            done += count
            continue
        with (own / one.name).open("w", encoding="utf-8") as stream:
            for number in range(context.rank, count, context.world_size):
                stream.write(_demonstration(context, one, number).line())
                if number // context.world_size % PROGRESS_EVERY == 0:
                    context.progress(done + number, total, "demonstrations")
        done += count
    context.barrier()
    result: dict[str, Any] = {}
    if context.is_first_rank:
        with published_folder(context.folder / "trajectories") as staging:
            for one in assignments:
                merge([parts / str(rank) / one.name for rank in range(context.world_size)], staging / one.name)
        shutil.rmtree(parts)
        sync_folder(context.folder)
        context.progress(total, total, "demonstrations")
        result = {"demonstrations": _summary(context.folder / "trajectories", assignments)}
        for name, report in self_played.items():
            result["demonstrations"][name]["self_play"] = report
    context.finish(result)


def merge(parts: list[Path], destination: Path) -> None:
    """Lines of the parts in turn: the first line of each, then the second of each, ..."""
    streams = [part.open(encoding="utf-8") for part in parts]
    try:
        with destination.open("w", encoding="utf-8") as merged:
            while lines := [line for stream in streams if (line := stream.readline())]:
                merged.writelines(lines)
    finally:
        for stream in streams:
            stream.close()


def task_order(num_tasks: int, count: int, seed: int) -> list[int]:
    """Places of the tasks of `count` demonstrations: every pass through the tasks is shuffled anew."""
    order: list[int] = []
    while len(order) < count:
        one_pass = list(range(num_tasks))
        random.Random(derived_seed(seed, len(order) // num_tasks)).shuffle(one_pass)
        order += one_pass
    return order[:count]


def _assignments(context: JobContext) -> Iterator[Assignment]:
    for name in sorted(context.job.settings["domains"]):
        domain = context.setting_of("domains", name, Domain)
        assert domain.world is not None
        plays_itself = domain.world in GENERATOR_WORLDS
        world = None if plays_itself else open_world(context, name, domain)
        for source in domain.trajectories:
            if source.synthesize is None:
                continue
            file = f"{name}.{source.name}.jsonl"
            if world is None:
                yield Assignment(name=file, domain=name, block=domain, source=source, world=None, tasks=[])
                continue
            wanted = domain.prompts.train if domain.prompts else source.synthesize
            try:
                tasks = world.tasks("train", wanted, derived_seed(context.plan.seed, name, "train"))
            except WorldError as error:
                raise UserError(f"domain `{name}`: {error}", exit_code=ExitCode.SPEC) from error
            order = task_order(len(tasks), source.synthesize, derived_seed(context.job.seed, name, source.name))
            drawn = [tasks[place] for place in order]
            yield Assignment(name=file, domain=name, block=domain, source=source, world=world, tasks=drawn)


def _self_play(context: JobContext, one: Assignment, parts: Path, path: Path, done: int, total: int) -> dict[str, Any]:
    """Play a source; says what became of the proposals. Collective."""

    def on_progress(report: Report) -> None:
        if one.source.is_played or report.proposed % PROGRESS_EVERY == 0:
            context.progress(done + report.accepted, total, "demonstrations")

    source = Source(name=one.domain, domain=one.block, source=one.source)
    return play(context, source, parts, path, on_progress).as_json()


def _demonstration(context: JobContext, one: Assignment, number: int) -> TrajectoryRecord:
    assert one.world is not None
    return demonstrate(
        one.world,
        one.tasks[number],
        seed=derived_seed(context.job.seed, one.domain, one.source.name, number),
        habit_rate=one.source.habit_rate,
        slip_rate=one.source.slip_rate,
        tools=one.source.tools,
    )


def _summary(folder: Path, assignments: list[Assignment]) -> dict[str, Any]:
    """Per file: how many demonstrations, of how many tasks, and how many of them solved their task."""
    summary: dict[str, Any] = {}
    for one in assignments:
        with (folder / one.name).open(encoding="utf-8") as stream:
            solved = sum(json.loads(line)["reward"] == 1.0 for line in stream)
        tasks = len({task.key for task in one.tasks}) or one.source.synthesize
        summary[one.name] = {"count": one.source.synthesize, "tasks": tasks, "solved": solved}
    return summary
