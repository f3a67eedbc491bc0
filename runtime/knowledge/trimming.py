"""Trims regressive segments: turns that led nowhere and that nothing later builds on.

A turn goes where every call of it could not be carried out, repeats an earlier call with the same observation, or is one that the
generator names (a branch that was given up, say). What the model wrote elsewhere stays as it is, so nothing is put into its mouth.

Of an episode that was compacted only the last context is trimmed. The notes that end every earlier one tell of its turns, the
regressive ones among them: without those the record would teach a model to write of what it never did.
"""

import json
from dataclasses import replace

from ..worlds.base import Call
from .generators.base import TaskGenerator
from .records import StepRecord, TrajectoryRecord, written_by_model


def trimmed(generator: TaskGenerator, record: TrajectoryRecord) -> TrajectoryRecord:
    """The record without the regressive turns of its last context, `provenance.trimmed` saying how many."""
    calls: list[tuple[Call, str]] = []
    at: list[StepRecord] = [step for step in record.steps if step.call is not None and step.observation is not None]
    for step in at:
        function = record.messages[step.message]["tool_calls"][step.call]["function"]
        calls.append((_call(function), str(record.messages[step.observation or 0]["content"])))
    regressive = {place for place, step in enumerate(at) if not step.readable} | generator.regressive(record.task, calls)
    first = max(record.restarts, default=0)  # message of the last context, which knows nothing of the observations before it
    seen: set[str] = set()
    for place, (call, observation) in enumerate(calls):
        if at[place].message < first:
            continue
        key = json.dumps([call.name, call.arguments, observation], sort_keys=True, default=str)
        if key in seen and not at[place].evidence:
            regressive.add(place)
        seen.add(key)
    staying = {step.message for place, step in enumerate(at) if place not in regressive or step.message < first}
    going = {step.message for step in at} - staying
    left = any(written_by_model(message) for place, message in enumerate(record.messages) if place not in going)
    return _without(record, going) if going and left else record


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
