"""Worlds where mistakes compound: how long an episode is, and what a wrong call changes."""

from typing import Any

import pytest
from polymath.runtime.knowledge.records import TrajectoryRecord
from polymath.runtime.worlds.base import message_of
from polymath.runtime.worlds.course import CourseWorld
from polymath.runtime.worlds.demonstrations import demonstrate
from polymath.runtime.worlds.registry import make_world

every_course = pytest.mark.parametrize("name", ["trail", "ledger"])


def course(name: str, **settings: Any) -> CourseWorld:
    world = make_world(name, settings)
    assert isinstance(world, CourseWorld)
    return world


def places_of(record: TrajectoryRecord) -> list[int]:
    return [int(message["content"].split()[0]) for message in record.messages if message["role"] == "tool"]


@every_course
@pytest.mark.parametrize("horizon", [2, 4, 8, 16])
def test_a_flawless_episode_takes_as_many_calls_as_its_horizon_and_never_leaves_the_path(name: str, horizon: int) -> None:
    world = course(name, horizon=horizon)
    for task in world.tasks("train", 50, 0):
        places = places_of(demonstrate(world, task, 0, 0.0, 0.0))
        assert len(places) == horizon
        assert set(places) <= set(world.path)


@every_course
def test_after_a_wrong_call_the_oracle_comes_back_and_goes_on_from_another_place(name: str) -> None:
    world = course(name, horizon=4)
    elsewhere = 0
    tasks = world.tasks("train", 100, 0)
    for task in tasks:
        start = task.payload["start"]
        flawless = places_of(demonstrate(world, task, 0, 0.0, 0.0))
        episode, oracle = world.start(task), world.demonstrator(task, seed=0, habit_rate=0.0, slip_rate=0.0)
        oracle.next([])
        observations = episode.act(message_of(world.stray(start), 1))
        strayed = int(observations[0]["content"].split()[0])
        assert strayed not in world.path and observations[0]["content"].split()[1] == "4"
        places = []
        while not episode.done:
            observations = episode.act(oracle.next(observations))
            places += [int(one["content"].split()[0]) for one in observations]
        assert episode.outcome() == 1.0
        assert len(places) == 5 and places[0] in world.path  # one call back, then the whole horizon
        elsewhere += places[1:] != flawless
    assert elsewhere > len(tasks) / 2


@every_course
def test_tasks_start_off_the_path_as_often_as_asked_for(name: str) -> None:
    for share in (0.0, 1.0):
        world = course(name, astray=share)
        starts = {task.payload["start"] for task in world.tasks("train", 100, 0)}
        assert starts <= set(world.astray if share else world.path)
