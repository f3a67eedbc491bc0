"""Turns that led nowhere go; of a compacted episode only those that no notes tell of."""

import json
from typing import Any

import pytest
from polymath.runtime.knowledge.generators.base import NOTES
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.records import StepRecord, TaskRecord, TrajectoryRecord, record_from_json
from polymath.runtime.knowledge.trimming import trimmed

TASK = TaskRecord(instruction="What?", domain="d", key="What?", target="4", evidence=(), verifiers=(), payload={})
SLIP, FINE = ("lookup", False), ("molar_mass", True)


def turn(name: str) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": json.dumps({"formula": "H2O"})}
    call = {"id": "c", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": f"{name} says 18"},
    ]


def episode(*contexts: list[tuple[str, bool]]) -> TrajectoryRecord:
    """Contexts of calls, each readable or not; notes between them, and an answer."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What?"}]
    steps: list[StepRecord] = []
    restarts: list[int] = []
    for number, calls in enumerate(contexts):
        if number:
            messages += [{"role": "user", "content": "Notes, please."}, {"role": "assistant", "content": "lookup failed."}]
            steps.append(StepRecord(message=len(messages) - 1))
            restarts.append(len(messages))
            messages.append({"role": "user", "content": f"{NOTES}lookup failed."})
        for name, readable in calls:
            steps.append(StepRecord(message=len(messages), call=0, observation=len(messages) + 1, readable=readable))
            messages += turn(name)
    steps.append(StepRecord(message=len(messages)))
    messages.append({"role": "assistant", "content": "4"})
    return TrajectoryRecord(
        task=TASK, messages=tuple(messages), steps=tuple(steps), restarts=tuple(restarts), answer="4", status="answered", reward=1.0
    )


def called(record: TrajectoryRecord) -> list[list[str]]:
    """The calls of every context."""
    contexts = record.contexts()
    return [[call["function"]["name"] for one in context for call in one.get("tool_calls", ())] for context in contexts]


@pytest.fixture(scope="module")
def generator() -> Any:
    return make_generator("scientific_chains", {})


def test_calls_that_no_tool_takes_and_repeats_go(generator: Any) -> None:
    record = trimmed(generator, episode([SLIP, FINE, FINE]))
    assert called(record) == [["molar_mass"]] and record.provenance["trimmed"] == 2


def test_of_a_compacted_episode_only_the_last_context_is_trimmed(generator: Any) -> None:
    """The notes of the first context tell of its slip: without it they would tell of what never was."""
    record = trimmed(generator, episode([SLIP, FINE], [SLIP, FINE]))
    assert called(record) == [["lookup", "molar_mass"], ["molar_mass"]] and record.provenance["trimmed"] == 1
    assert record_from_json(record.as_json()) == record
    places = [step.observation for step in record.steps if step.observation is not None]
    assert all(record.messages[place]["role"] == "tool" for place in places)


def test_what_a_compacted_context_forgot_is_no_repetition(generator: Any) -> None:
    before = episode([FINE], [FINE])
    assert trimmed(generator, before) == before
