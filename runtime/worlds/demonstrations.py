"""Demonstrations: a solver acts in a world, and what happened becomes a trajectory record."""

from typing import Any

from .protocol import Message, Task, World

MOST_TURNS = 64  # a demonstrator that has not answered by then has lost its way


def demonstrate(world: World, task: Task, seed: int, habit_rate: float, slip_rate: float) -> dict[str, Any]:
    """One episode as a JSON-serialisable record.

    Keys: `world`, `task` (its key), `messages` and `tools` (OpenAI's chat form, the whole conversation), `steps` (records
    `state, action, observation, verdict`), `outcome` (the outcome verifier) and `reward` (the same number, where readers of chat
    JSONL look for it).
    """
    episode = world.start(task)
    solver = world.demonstrator(task, seed=seed, habit_rate=habit_rate, slip_rate=slip_rate)
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
