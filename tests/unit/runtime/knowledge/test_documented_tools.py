"""Tools by their documents: requests to BFCL's eight services, decided by their state. Wants ../shared/data."""

import copy
import json
import os
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from planted import Replay, clean_tasks, planted, played, verdict
from polymath.runtime.knowledge.generators.base import TaskGenerator
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.records import TaskRecord, written_by_model
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, accepted, self_play
from polymath.runtime.worlds.bfcl.functions import function_schema
from polymath.runtime.worlds.bfcl.multi_turn import Services
from polymath.runtime.worlds.rows import FunctionCall

DOCUMENTS = Path(__file__).parents[5] / "shared/data/bfcl/func_doc"
COUNT = int(os.environ.get("POLYMATH_PLANTED", "12"))  # the figures of docs/numbers.md are of 1000
DEFECTS = {
    "shortcut": "unambiguous",
    "ambiguous": "unambiguous",
    "unreachable": "checkable",
    "unread evidence": "consulted",
    "lucky guess": "consulted",
}
pytestmark = [pytest.mark.real_data, pytest.mark.skipif(not DOCUMENTS.is_dir(), reason="there is no ../shared/data here")]


@pytest.fixture(scope="module")
def generator() -> TaskGenerator:
    return make_generator("tool_subgraphs", {"documents": str(DOCUMENTS)})


def test_requests_are_connected_subgraphs_of_the_documented_functions(generator: TaskGenerator) -> None:
    tasks = clean_tasks(generator, 150, 3)
    functions = {json.loads(line)["name"] for path in DOCUMENTS.glob("*.jsonl") for line in path.read_text().splitlines()}
    assert {schema["function"]["name"] for schema in generator.tools} == functions and len(functions) == 128
    for task in tasks:
        calls = task.payload["calls"]
        used = {given["from"] for call in calls for given in call["arguments"].values() if "from" in given}
        assert used == set(range(len(calls) - 1)), "every call but the last gives another one something"
    assert len({task.payload["calls"][-1]["name"] for task in tasks}) >= 15
    assert len({service for task in tasks for service in task.payload["services"]}) == 8
    assert max(len(task.payload["calls"]) for task in tasks) >= 6


def test_what_is_accepted_left_the_services_in_the_state_that_was_asked_for(tmp_path: Path) -> None:
    settings = {"documents": str(DOCUMENTS)}
    generator = make_generator("tool_subgraphs", settings, GraphStore.create(tmp_path / "a.sqlite"))
    report = self_play(generator, Roles(slip_rate=0.1), Goal(accepted=15, attempts=4))
    assert report.accepted == 15 and report.refused["answered"]
    for record in accepted(generator):
        tools = {tool["function"]["name"] for tool in record.tools or ()}
        assert {call["name"] for call in record.task.payload["calls"]} <= tools and len(tools) < 128, "the involved services' alone"
        made = [call["function"] for one in record.messages for call in one.get("tool_calls", ())]
        services = Services(record.task.payload["services"], None)
        for call in made:
            services.call(FunctionCall(call["name"], json.loads(call["arguments"])))
        assert services.state() == state_after(record.task.payload)


def test_no_clean_request_is_refused(generator: TaskGenerator) -> None:
    refused = {task.key: why for task in clean_tasks(generator, COUNT, 1) if (why := verdict(generator, task))}
    print(f"documented tools clean: {len(refused)} of {COUNT} refused")
    assert not refused


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_planted_defect_of_a_request_is_refused(generator: TaskGenerator, defect: str) -> None:
    rng, count, seed = random.Random(7), 0, 2
    while count < COUNT:
        for task in clean_tasks(generator, min(COUNT, 50), seed):
            if (spoilt := SPOIL[defect](generator, task, rng)) is None or count == COUNT:
                continue
            count += 1
            assert DEFECTS[defect] in verdict(generator, *spoilt), spoilt[0]
        seed += 1
    print(f"documented tools {defect}: {count} of {count} refused")


@cache
def schemas() -> list[dict[str, Any]]:
    """What the functions take; arguments of another type are refused."""
    lines = [line for path in DOCUMENTS.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [function_schema(json.loads(line)) for line in lines]


def carried_out(payload: Mapping[str, Any]) -> tuple[Any, list[bool]] | None:
    """The services after a request's calls, and which of them changed something; None where one fails.

    Of several values of a field, an argument is the first.
    """
    services, outputs, changes = Services(payload["services"], schemas()), [], []
    for call in payload["calls"]:
        arguments = {}
        for name, given in call["arguments"].items():
            if "value" not in given:
                found = re.findall(rf'"{given["field"]}": ("(?:[^"\\]|\\.)*"|[-\d.e]+)', outputs[given["from"]])
                if not found:
                    return None
            arguments[name] = given["value"] if "value" in given else json.loads(found[0])
        before = services.state()
        text, readable = services.call(FunctionCall(call["name"], arguments))
        if not readable:
            return None
        outputs.append(text)
        changes.append(services.state() != before)
    return services.state(), changes


def state_after(payload: Mapping[str, Any]) -> Any:
    found = carried_out(payload)
    return found and found[0]


@cache
def values_of_users(generator: TaskGenerator) -> dict[tuple[str, str], set[Any]]:
    """What users of other requests gave, by function and parameter."""
    found: dict[tuple[str, str], set[Any]] = {}
    for task in clean_tasks(generator, 200, 1000):
        for place, name, value in said_values(task):
            found.setdefault((task.payload["calls"][place]["name"], name), set()).add(value)
    return found


def changed(task: TaskRecord, place: int, name: str, value: Any) -> dict[str, Any]:
    payload = copy.deepcopy(dict(task.payload))
    payload["calls"][place]["arguments"][name] = {"value": value}
    return payload


def said_values(task: TaskRecord) -> list[tuple[int, str, Any]]:
    return [
        (place, name, given["value"])
        for place, call in enumerate(task.payload["calls"])
        for name, given in call["arguments"].items()
        if "value" in given and [place, name] != task.payload["asked"] and isinstance(given["value"], (str, int, float))
    ]


def shortcut(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Any:
    """What has to be found out is said: an argument that the oracle took from another call's answer."""
    record = played(generator, task)
    made = [call["function"] for one in record.messages for call in one.get("tool_calls", ())]
    given = task.payload["calls"][-1]["arguments"]
    name = rng.choice([name for name in given if "from" in given[name]])
    value = json.loads(made[-1]["arguments"])[name]
    return replace(task, instruction=f"{task.instruction} By the way, the {name} is {value}"), None


def ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Any:
    """A value is left out, another one is offered besides, or the services hold a second ticket of the kind that is asked for."""
    right = state_after(task.payload)
    searched = [call["arguments"]["status"]["value"] for call in task.payload["calls"] if call["name"] == "get_user_tickets"]
    if searched and rng.random() < 0.5:
        payload = copy.deepcopy(dict(task.payload))
        queue = payload["services"]["TicketAPI"]["ticket_queue"]
        twin = next(ticket for ticket in queue if ticket["status"] == searched[0])
        queue.insert(0, {**twin, "id": twin["id"] + 10_000, "title": f"{twin['title']} again", "description": "the same again"})
        other = state_after(payload)
        queue.append(queue.pop(0))  # the other order: what the first place gives is another state
        right = state_after(payload)
        spoilt = replace(task, payload=payload)
    else:
        if not (values := said_values(task)):
            return None
        place, name, value = rng.choice(values)
        known = values_of_users(generator).get((task.payload["calls"][place]["name"], name), set())
        others = [
            one for one in sorted(known - {value}, key=str) if state_after(changed(task, place, name, one)) not in (None, right)
        ]
        if not others:
            return None
        other = state_after(changed(task, place, name, others[0]))
        words = f"{name}: {json.dumps(value)}"
        instead = rng.choice((f"{name}: as you like", f"{words} or {json.dumps(others[0])}"))
        if task.instruction.count(words) != 1:
            return None
        spoilt = replace(task, instruction=task.instruction.replace(words, instead))
    assert other is not None and other != right, "both do what the words say"
    return spoilt, None


def unreachable(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Any:
    """The services lack what is looked up, or the state that is wanted is that of another request."""
    bare = {**task.payload, "services": {one: {} for one in task.payload["services"]}}
    if rng.random() < 0.5 and state_after(bare) is None:
        return replace(task, payload=bare), None
    (other,) = clean_tasks(generator, 1, rng.randrange(10**6))
    return (replace(task, target=other.target), None) if other.target != task.target else None


def unread(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Any:
    found = planted(generator, task, "unread evidence", rng)
    return found and (found.task, found.solver)


def lucky(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Any:
    """Only what changes something is done, with the right arguments, which nothing had shown."""
    found = carried_out(task.payload)
    assert found is not None
    if all(found[1]):
        return None
    changes = iter(found[1])
    said = filter(written_by_model, played(generator, task).messages)
    messages = [one for one in said if not one.get("tool_calls") or next(changes)]
    assert played(generator, task, Replay(messages)).reward == 1.0, "the outcome verifier alone does not see it"
    return task, Replay(messages)


SPOIL = {
    "shortcut": shortcut,
    "ambiguous": ambiguous,
    "unreachable": unreachable,
    "unread evidence": unread,
    "lucky guess": lucky,
}
