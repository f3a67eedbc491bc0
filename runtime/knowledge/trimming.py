"""Trims regressive segments: turns that led nowhere and that nothing later builds on.

A turn goes where every call of it could not be carried out, repeats an earlier call with the same observation, or is one that the
generator names (a branch that was given up, say). What the model wrote elsewhere stays as it is, so nothing is put into its mouth.
"""

import json
from dataclasses import replace

from ..worlds.base import Call
from .generators.base import TaskGenerator
from .records import StepRecord, TrajectoryRecord


def trimmed(generator: TaskGenerator, record: TrajectoryRecord) -> TrajectoryRecord:
    """The record without its regressive turns, `provenance.trimmed` saying how many; an episode that was compacted stays whole."""
    if record.restarts:
        return record
    calls: list[tuple[Call, str]] = []
    at: list[StepRecord] = [step for step in record.steps if step.call is not None and step.observation is not None]
    for step in at:
        function = record.messages[step.message]["tool_calls"][step.call]["function"]
        calls.append((_call(function), str(record.messages[step.observation or 0]["content"])))
    regressive = {place for place, step in enumerate(at) if not step.readable} | generator.regressive(record.task, calls)
    seen: set[str] = set()
    for place, (call, observation) in enumerate(calls):
        key = json.dumps([call.name, call.arguments, observation], sort_keys=True, default=str)
        if key in seen and not at[place].evidence:
            regressive.add(place)
        seen.add(key)
    going = {step.message for step in at} - {step.message for place, step in enumerate(at) if place not in regressive}
    return _without(record, going) if going else record


def _without(record: TrajectoryRecord, going: set[int]) -> TrajectoryRecord:
    """The record without some assistant's messages and what answered them; places move up."""
    answers = {step.observation for step in record.steps if step.message in going and step.observation is not None}
    kept = [place for place in range(len(record.messages)) if place not in going | answers]
    moved = {place: number for number, place in enumerate(kept)}
    steps = [
        replace(step, message=moved[step.message], observation=None if step.observation is None else moved[step.observation])
        for step in record.steps
        if step.message in moved
    ]
    shorter = replace(record, messages=tuple(record.messages[place] for place in kept), steps=tuple(steps))
    return shorter.with_provenance(trimmed=len(going))


def _call(function: dict[str, str]) -> Call:
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        arguments = {}
    return Call(function["name"], arguments if isinstance(arguments, dict) else {})
