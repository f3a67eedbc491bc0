"""Demonstrations: a solver acts in a world, and what happened becomes a trajectory record."""

from collections.abc import Sequence
from dataclasses import replace

from ..knowledge.records import StepRecord, TaskRecord, TrajectoryRecord
from .protocol import Message, Solver, Step, Task, World, WorldError

MOST_TURNS = 64  # a demonstrator that has not answered by then has lost its way


def demonstrate(world: World, task: Task, seed: int, habit_rate: float, slip_rate: float, tools: bool = True) -> TrajectoryRecord:
    """One episode.

    Args:
        tools: without them the solver's last message is all it says, and no tool is offered.

    Raises:
        WorldError: without tools, an answer that was right is not: the world wants to see the calls.
    """
    solver = world.demonstrator(task, seed=seed, habit_rate=habit_rate, slip_rate=slip_rate)
    record = _play(world, task, solver)
    if tools:
        return record
    answered = _play(world, task, _Answer(record.messages[-1]))
    if (answered.reward or 0.0) < (record.reward or 0.0):
        raise WorldError(
            f"tasks of world `{world.name}` cannot be solved without calls (task {task.key})", fix="remove `tools: false`"
        )
    return replace(answered, tools=())


class _Answer:
    """A solver that says one thing."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def next(self, observations: Sequence[Message]) -> Message:
        return self._message


def _play(world: World, task: Task, solver: Solver) -> TrajectoryRecord:
    episode = world.start(task)
    messages: list[Message] = list(episode.opening())
    instruction = str(messages[-1]["content"])
    steps: list[StepRecord] = []
    observations: list[Message] = []
    for _ in range(MOST_TURNS):
        action = solver.next(observations)
        known = len(episode.steps)
        observations = episode.act(action)
        steps += _new_steps(episode.steps[known:], len(messages), observations)
        messages += [action, *observations]
        if episode.done:
            break
    return TrajectoryRecord(
        task=TaskRecord(
            instruction=instruction, domain=world.name, key=task.key, verifiers=("outcome",), payload=dict(task.payload)
        ),
        messages=tuple(messages),
        tools=tuple(world.tools if task.tools is None else task.tools),
        steps=tuple(steps),
        answer=str(messages[-1].get("content") or "") if episode.done else None,
        status="answered" if episode.done else "turns",
        reward=episode.outcome(),
    )


def _new_steps(taken: Sequence[Step], place: int, observations: Sequence[Message]) -> list[StepRecord]:
    """Records of the steps that one message made; its observations follow it: a tool's of each call, or what the user says next."""
    of_calls = [message["role"] == "tool" for message in observations]
    return [
        StepRecord(
            message=place,
            call=number if number < len(of_calls) and of_calls[number] else None,
            observation=place + 1 + number if number < len(of_calls) else None,
            verdict=step.verdict,
            readable=step.readable,
        )
        for number, step in enumerate(taken)
    ]
