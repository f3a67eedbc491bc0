"""Demonstrations: a solver acts in a world, and what happened becomes a trajectory record."""

from collections.abc import Sequence
from typing import Any

from .protocol import Message, Solver, Task, World, WorldError

MOST_TURNS = 64  # a demonstrator that has not answered by then has lost its way


def demonstrate(world: World, task: Task, seed: int, habit_rate: float, slip_rate: float, tools: bool = True) -> dict[str, Any]:
    """One episode as a JSON-serialisable record.

    Keys: `world`, `task` (its key), `messages` and `tools` (OpenAI's chat form, the whole conversation), `steps` (records
    `state, action, observation, verdict`), `outcome` (the outcome verifier) and `reward` (the same number, where readers of chat
    JSONL look for it).

    Args:
        tools: without them the solver's last message is all it says, and no tool is offered.

    Raises:
        WorldError: without tools, an answer that was right is not: the world wants to see the calls.
    """
    solver = world.demonstrator(task, seed=seed, habit_rate=habit_rate, slip_rate=slip_rate)
    record = _play(world, task, solver)
    if tools:
        return record
    answered = _play(world, task, _Answer(record["messages"][-1]))
    if answered["outcome"] < record["outcome"]:
        raise WorldError(
            f"tasks of world `{world.name}` cannot be solved without calls (task {task.key})", fix="remove `tools: false`"
        )
    return {**answered, "tools": []}


class _Answer:
    """A solver that says one thing."""

    def __init__(self, message: Message) -> None:
        self._message = message

    def next(self, observations: Sequence[Message]) -> Message:
        return self._message


def _play(world: World, task: Task, solver: Solver) -> dict[str, Any]:
    episode = world.start(task)
    messages: list[Message] = episode.opening()
    observations: list[Message] = []
    for _ in range(MOST_TURNS):
        action = solver.next(observations)
        observations = episode.act(action)
        messages += [action, *observations]
        if episode.done:
            break
    steps = [
        {"state": dict(step.state), "action": step.action, "observation": step.observation, "verdict": step.verdict}
        for step in episode.steps
    ]
    outcome = episode.outcome()
    return {
        "world": world.name,
        "task": task.key,
        "messages": messages,
        "tools": [dict(tool) for tool in world.tools],
        "steps": steps,
        "outcome": outcome,
        "reward": outcome,
    }
