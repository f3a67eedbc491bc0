"""Promises of the filter by difficulty: the tasks that are kept are mixed, and are looked for once."""

import dataclasses
import json
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from polymath.runtime.jobs import JobContext
from polymath.runtime.rollouts import RolloutRequest
from polymath.runtime.stages import keep_mixed as module
from polymath.runtime.stages.keep_mixed import keep_mixed
from polymath.runtime.stages.on_policy import PromptDeck
from polymath.runtime.worlds.protocol import Task
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Domain, KeepMixed, Limits
from stage_contexts import MakeContext, job_of

TASKS = [Task(world="w", key=str(number), payload={}) for number in range(10)]


class StubActors:
    """Solves task n in `times(n)` of its attempts."""

    def __init__(self, times: Callable[[int], int]) -> None:
        self.decks = {"tools": PromptDeck(TASKS, seed=0)}
        self.domains = {"tools": Domain(world="tools", limits=Limits(turns=1, response_tokens=1, context_tokens=8))}
        self.played: list[str] = []
        self._times = times

    def play(self, requests: Sequence[RolloutRequest], seed: int) -> list[Any]:
        keys = [request.task.key for request in requests]
        outcomes = [float(keys[:place].count(key) < self._times(int(key))) for place, key in enumerate(keys)]
        self.played += keys
        return [types.SimpleNamespace(outcome=outcome) for outcome in outcomes]

    def kept(self) -> list[str]:
        return [task.key for task in self.decks["tools"].tasks]


@pytest.fixture
def context(make_context: MakeContext) -> JobContext:
    return make_context(job_of("teachers.operator.1", "grpo", {}))


def _filter(context: JobContext, actors: StubActors, attempts: int = 4, tasks: int | None = None) -> list[str]:
    keep_mixed(context, actors, KeepMixed(attempts=attempts, tasks=tasks))  # type: ignore[arg-type]
    return actors.kept()


def test_tasks_that_are_always_or_never_solved_are_left_out(context: JobContext) -> None:
    actors = StubActors(lambda number: number % 5)  # 0 of 4, 1, 2, 3, 4 of 4, again
    assert _filter(context, actors) == ["1", "2", "3", "6", "7", "8"]
    assert actors.played == [str(number) for number in range(10) for _ in range(4)]
    progress = json.loads((context.folder / "progress.json").read_text())
    assert (progress["done"], progress["total"]) == (10, 10)


def test_no_more_are_tried_than_are_wanted(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_EPISODES", 12)
    actors = StubActors(lambda number: number % 5)
    assert _filter(context, actors, tasks=3) == ["1", "2", "3"]
    assert set(actors.played) == {"0", "1", "2", "3", "4", "5"}  # two chunks of three tasks


def test_the_deck_draws_kept_tasks_alone(context: JobContext) -> None:
    actors = StubActors(lambda number: number % 5)
    before = {task.key for task in actors.decks["tools"].draw(0, 10)}
    assert before == {task.key for task in TASKS}
    kept = _filter(context, actors, tasks=4)
    assert {task.key for task in actors.decks["tools"].draw(0, 10)} == set(kept) == {"1", "2", "3", "6"}


def test_a_resumed_job_keeps_the_same_tasks_without_playing(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_EPISODES", 12)
    kept = _filter(context, StubActors(lambda number: number % 5))
    again = StubActors(lambda number: 0)
    assert _filter(context, again) == kept and not again.played

    sorted((context.folder / "mixed").iterdir())[-1].unlink()  # killed before the last chunk, which is the last task
    rest = StubActors(lambda number: 1)
    assert _filter(context, rest) == [*kept, "9"] and set(rest.played) == {"9"}


def test_ranks_share_the_tasks_and_agree_and_another_number_of_ranks_plays_anew(context: JobContext) -> None:
    kept = _filter(context, StubActors(lambda number: number % 5))
    together = threading.Barrier(2)
    ranks = [dataclasses.replace(context, world_size=2, rank=rank, barrier=together.wait) for rank in (0, 1)]
    actors = [StubActors(lambda number: number % 5) for _ in ranks]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(_filter, ranks, actors)) == [kept, kept]
    assert [set(one.played) for one in actors] == [set("02468"), set("13579")]
    alone = StubActors(lambda number: number % 5)
    assert _filter(context, alone) == kept and set(alone.played) == set("0123456789")


def test_no_mixed_task_is_a_clear_mistake(context: JobContext) -> None:
    with pytest.raises(UserError, match=r"no task of domain `tools` is mixed: of 10 tasks, .* solves 3 in all of 4") as caught:
        _filter(context, StubActors(lambda number: 4 if number < 3 else 0))
    assert caught.value.exit_code == 6 and "attempts" in str(caught.value.fix)
