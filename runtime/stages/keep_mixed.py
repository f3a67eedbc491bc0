"""Which tasks a GRPO phase trains on: those that its starting model solves in some attempts and fails in others.

For every domain of the phase, before the first step:
  1. take the training tasks in their order, a chunk at a time, and play each of them `attempts` times with the starting weights;
  2. write down how often each was solved (`mixed/<domain>.<chunk>.<rank>.json`), so that an interrupted job goes on from there;
  3. stop when `tasks` of them are mixed, or when all were played; the deck then holds the mixed ones alone.
What it does not do: look at rewards other than the outcome, or look again after the first step.

Source: Agents-A1 (arXiv 2606.30616), section on training: the search teacher keeps questions with mixed outcomes over 5 attempts.
"""

import json
from collections.abc import Sequence
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import KeepMixed
from ..files import write_json
from ..jobs import JobContext
from ..rewards import outcome_alone
from ..rollouts import RolloutRequest
from ..worlds.protocol import Task
from .on_policy import Actors, derived_seed

CHUNK_EPISODES = 1024  # played at once; more are no faster and lose more when they are interrupted


def keep_mixed(context: JobContext, actors: Actors, wanted: KeepMixed) -> None:
    """Leave only mixed tasks in the decks. Collective.

    Raises:
        UserError: a domain has none.
    """
    total = sum(len(deck.tasks) for deck in actors.decks.values())
    before = 0
    for domain, deck in actors.decks.items():
        tasks = deck.tasks
        size = max(1, CHUNK_EPISODES // wanted.attempts)
        solved: list[int] = []
        mixed: list[Task] = []
        while len(solved) < len(tasks) and (wanted.tasks is None or len(mixed) < wanted.tasks):
            chunk = tasks[len(solved) : len(solved) + size]
            solved += _solved(context, actors, domain, len(solved) // size, chunk, wanted.attempts)
            mixed = [task for task, times in zip(tasks, solved, strict=False) if 0 < times < wanted.attempts]
            context.progress(before + len(solved), total, "tasks tried")
        if not mixed:
            raise UserError(
                f"no task of domain `{domain}` is mixed: of {len(solved)} tasks, the starting model solves "
                f"{sum(times > 0 for times in solved)} in all of {wanted.attempts} attempts and the others in none",
                exit_code=ExitCode.FAILED,
                fix="raise `keep_mixed.attempts`, change the difficulty in the phase's `settings`, or remove `keep_mixed`",
            )
        deck.keep(mixed[: wanted.tasks])
        before += len(tasks)


def _solved(context: JobContext, actors: Actors, domain: str, number: int, chunk: Sequence[Task], attempts: int) -> list[int]:
    """How often each task of a chunk was solved; ranks play every n-th task."""

    def part(rank: int) -> Any:
        return context.folder / "mixed" / f"{domain}.{number:04d}.{rank}.json"

    def read() -> list[Any]:
        files = [json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None for path in parts]
        return [one["tasks"] for one in files if one is not None and one["ranks"] == context.world_size]

    parts = [part(rank) for rank in range(context.world_size)]
    there = len(read()) == context.world_size
    context.barrier()  # nobody writes before everybody has looked
    if not there:
        settings = actors.domains[domain]
        assert settings.limits is not None
        own = chunk[context.rank :: context.world_size]
        requests = [
            RolloutRequest(domain=domain, task=task, limits=settings.limits, reward=outcome_alone(settings.reward))
            for task in own
            for _ in range(attempts)
        ]
        outcomes = [
            one.outcome for one in actors.play(requests, derived_seed(context.job.seed, "mixed", domain, number, context.rank))
        ]
        times = [sum(one > 0 for one in outcomes[start : start + attempts]) for start in range(0, len(outcomes), attempts)]
        rows = [{"task": task.key, "solved": count} for task, count in zip(own, times, strict=True)]
        write_json(part(context.rank), {"attempts": attempts, "ranks": context.world_size, "tasks": rows})
        context.barrier()
    solved = [0] * len(chunk)
    for rank, rows in enumerate(read()):
        solved[rank :: context.world_size] = [row["solved"] for row in rows]
    return solved
