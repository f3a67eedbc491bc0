"""Tools by their documents: connected subgraphs of the dependency graph of functions that others wrote, on services with a state.

The documents say what each function takes and returns. A function depends on another where it takes what the other returns: the
same field, or one that is only spelled differently (`SAME`). A task grows from one function that changes something: each argument
is either given by the user or what another function returns, and so on. It is screened by carrying it out: every call succeeds, one
final state is possible, and nothing that has to be found out is said. One value the simulated user tells only when asked. The final
state of the services decides, whatever calls led there.
Source: Agents-A1 report (arXiv 2606.30616), tool data; documents of the Berkeley function-calling leaderboard's eight services.
"""

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ....specs.generators import ToolSubgraphsSettings
from ...worlds.base import Call, Unreadable
from ...worlds.bfcl.apis import DOCUMENTS
from ...worlds.bfcl.functions import function_schema, json_schema
from ...worlds.bfcl.multi_turn import Services
from ...worlds.rows import FunctionCall, read_json_lines
from ..graph import GraphStore, address
from ..importers import add_tool
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator, say
from .service_states import NEEDED, initial_state, values_for

DONE = "done"
FROM_FUNCTION = 0.9  # probability that an argument comes from another function where both ways are open
DEEPEST = 3  # functions in a row below the one that changes something
MOST_READINGS = 16  # of a request
REPORTS = ("status", "message", "result")  # fields that say how a call went
SAME: Mapping[str, tuple[str, ...]] = {  # parameters, and the fields that are the same under another name
    "ticket_id": ("id",),
    "tweet_id": ("id",),
    "receiver_id": ("user_id",),
    "stock": ("symbol",),
    "username_to_follow": ("username",),
    "content": ("file_content", "sorted_content", "last_lines"),
    "comment_content": ("content", "file_content"),
    "message": ("file_content", "last_lines", "content"),
    "resolution": ("file_content",),
    "amount": ("result",),
    "fuelAmount": ("gallon",),
    "travel_from": ("nearest_airport",),
    "travel_to": ("nearest_airport",),
    "budget_limit": ("exchanged_value",),
    "insurance_cost": ("exchanged_value",),
    "cityA": ("zipcode",),
    "cityB": ("zipcode",),
    "temperature": ("outsideTemperature",),
    "destination": ("shopLocation",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A documented function: what it does in one sentence, what it has to be given, and the fields that it returns."""

    service: str
    schema: Mapping[str, Any]
    says: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A subgraph carried out: the calls with their arguments, and the address of the state after them."""

    calls: list[FunctionCall]
    found: list[Any]  # values that came from other functions
    changed: bool  # by the last call
    final: str


class DocumentedTools(TaskGenerator):
    """Carry out a request whose arguments other functions return."""

    name = "tool_subgraphs"
    ranks_candidates = True
    verifiers: Mapping[str, str] = {
        "outcome": "the services are in the state that the request leads to",
        "call": "function and arguments are those of the request",
    }
    duplicate_threshold = 1.01  # requests share the documents' words

    def __init__(self, store: GraphStore, settings: ToolSubgraphsSettings) -> None:
        super().__init__(store, settings)
        self.functions = dict(_functions(settings.documents or ""))
        self.tools = tuple(function.schema for function in self.functions.values())
        self._nodes = {node.name: node.id for node in store.nodes("action")}
        self._ways = {
            (name, parameter): [*self._producers(name, parameter)]
            for name, one in self.functions.items()
            for parameter in one.takes
        }
        self._runs = lru_cache(4096)(self._carried_out)

    @classmethod
    def furnish(cls, store: GraphStore, settings: ToolSubgraphsSettings) -> None:
        for _, _, tool in _documents(settings.documents or ""):
            add_tool(store, tool)
        store.commit()

    def tools_of(self, task: TaskRecord) -> Sequence[Mapping[str, Any]]:
        """The functions of the services that a task is about."""
        return [one.schema for one in self.functions.values() if one.service in task.payload["services"]]

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        wanted = (region or rng).choice([*self.functions])
        states = initial_state(rng)
        calls: list[dict[str, Any]] = []
        if self._plan(rng, (wanted,), calls, states) is None or len(calls) < 2:
            return None
        services = {self.functions[call["name"]].service: None for call in calls}
        leaves = [
            (place, name) for place, call in enumerate(calls) for name, given in call["arguments"].items() if "value" in given
        ]
        asked = rng.choice(leaves) if leaves else None
        payload = {"services": {one: states[one] for one in services}, "calls": calls, "asked": asked and list(asked)}
        ask = f" Ask me for the {asked[1]} there." if asked else ""
        instruction = f"Please do this: {self._say(calls, len(calls) - 1, asked, set())}.{ask} Say done at the end."
        names = dict.fromkeys(call["name"] for call in calls)
        payload = json.loads(json.dumps(payload))
        runs = self._runs(json.dumps(payload))
        if len(runs) != 1 or not runs[0].changed:
            return None
        task = TaskRecord(
            instruction=instruction,
            domain=self.name,
            key=f"{instruction} {address(json.dumps(payload))[:8]}",
            target=runs[0].final,
            evidence=tuple(self._nodes[name] for name in names),
            verifiers=("outcome",),
            payload=payload,
        )
        return task if len(names) > 1 and not self.shortcut(task) and self.admissible(task) == {task.target} else None

    def begin(self, task: TaskRecord) -> Services:
        return Services(task.payload["services"], self.tools_of(task))

    def reply(self, task: TaskRecord, state: Any, text: str) -> str | None:
        """The simulated user: tells the one value that is kept back when asked for it."""
        if task.payload["asked"] is None:
            return None
        place, name = task.payload["asked"]
        value = task.payload["calls"][place]["arguments"][name]["value"]
        return f"The {name} is {json.dumps(value)}" if name in text and "?" in text else None

    def serve(self, task: TaskRecord, state: Services, call: Call) -> Shown:
        text, readable = state.call(FunctionCall(call.name, call.arguments))
        if not readable:
            raise Unreadable(text)
        (run,) = self._runs(json.dumps(task.payload)) or (None,)
        right = run is not None and any((one.name, one.arguments) == (call.name, call.arguments) for one in run.calls)
        return Shown(text, (self._nodes[call.name],) if right else (), float(right))

    def accepts(self, task: TaskRecord, answer: str, state: Services | None = None) -> bool:
        if state is None:  # the verifier's word about a target, without an episode
            return answer == task.target and [run.final for run in self._runs(json.dumps(task.payload))] == [answer]
        return _address(state) == task.target

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        """The final states of every reading of the request: what it says of each value, and what the services return."""
        finals = set()
        for reading in itertools.islice(self._readings(task), MOST_READINGS):
            finals |= {run.final for run in self._runs(json.dumps(reading))}
        return frozenset(finals)

    def one_lookup(self, task: TaskRecord) -> str | None:
        return "one call does it" if len(task.payload["calls"]) < 2 else None

    def shortcut(self, task: TaskRecord) -> str | None:
        for run in self._runs(json.dumps(task.payload)):
            if not run.changed:
                return "nothing is left to do"
            if named := [value for value in run.found if _says(task.instruction, value)]:
                return f"the request says {named[0]}, which it asks to find out"
        return None

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        told = None
        if task.payload["asked"] is not None:
            answer = yield say(f"What is the {task.payload['asked'][1]}?")
            told = _json(answer.partition(" is ")[2])
        outputs: list[Any] = []
        for place, call in enumerate(task.payload["calls"]):
            arguments = {}
            for name, given in call["arguments"].items():
                if [place, name] == task.payload["asked"]:
                    arguments[name] = told
                elif "value" in given:
                    arguments[name] = given["value"]
                else:
                    values = values_of(outputs[given["from"]], given["field"])
                    if not values:
                        return "unknown"
                    arguments[name] = values[0]
            outputs.append(_json((yield Call(call["name"], arguments))))
        return DONE

    def _plan(self, rng: random.Random, way: tuple[str, ...], calls: list[dict[str, Any]], states: Mapping[str, Any]) -> int | None:
        """Add the last function of a way and those that its arguments come from; its place, or None where one cannot be had."""
        *_, name = way
        arguments: dict[str, Any] = {}
        for parameter in self.functions[name].takes:
            ways = [one for one in self._ways[name, parameter] if one[0] not in way]
            values = values_for(name, parameter, states)
            if ways and len(way) <= DEEPEST and (not values or rng.random() < FROM_FUNCTION):
                producer, field = rng.choice(ways)
                before = [place for place, call in enumerate(calls) if call["name"] == producer and field == "access_token"]
                at = before[0] if before else self._plan(rng, (*way, producer), calls, states)
                if at is None:
                    return None
                arguments[parameter] = {"from": at, "field": field}
            elif values:
                arguments[parameter] = {"value": rng.choice(values)}
            else:
                return None
        call = {"name": name, "arguments": arguments}
        if call not in calls:  # what was found out once is not looked up again
            calls.append(call)
        return calls.index(call)

    def _producers(self, name: str, parameter: str) -> Iterator[tuple[str, str]]:
        """Functions that return what a parameter takes, and the field."""
        for other, function in self.functions.items():
            for field in function.gives:
                if field == "id" and function.service != self.functions[name].service:
                    continue
                if any(field in (taken, *SAME.get(taken, ())) for taken in function.takes):
                    continue  # it returns what it was given
                if field in SAME.get(parameter, ()) or (field == parameter and field not in REPORTS):
                    yield other, field

    def _say(self, calls: Sequence[Mapping[str, Any]], place: int, asked: tuple[int, str] | None, before: set[int]) -> str:
        """A call in words, with what its arguments come from in brackets; one that was said before is not said again."""
        said = []
        before.add(place)
        for name, given in calls[place]["arguments"].items():
            if (place, name) == asked:
                said.append(f"{name}: ask me")
            elif "value" in given:
                said.append(f"{name}: {json.dumps(given['value'])}")
            elif given["from"] in before:
                said.append(f"{name}: the same {given['field']}")
            else:
                said.append(f"{name}: the {given['field']} from [{self._say(calls, given['from'], asked, before)}]")
        return self.functions[calls[place]["name"]].says + (f" ({'; '.join(said)})" if said else "")

    def _readings(self, task: TaskRecord) -> Iterator[dict[str, Any]]:
        """The task's payload with every value that its words allow: what is not said may be any, and what is said besides too."""
        text, calls = task.instruction, task.payload["calls"]
        for call in calls:
            text = text.replace(self.functions[call["name"]].says, " ")
        leaves = [
            (place, name, given["value"])
            for place, call in enumerate(calls)
            for name, given in call["arguments"].items()
            if "value" in given and [place, name] != task.payload["asked"]
        ]
        unsaid = []
        for leaf in sorted(leaves, key=lambda one: -len(_word(one[2]))):
            if _says(text, leaf[2]):
                text = re.sub(_pattern(leaf[2]), " ", text, count=1)
            else:
                unsaid.append(leaf)
        options = []
        for leaf in leaves:
            known = values_for(calls[leaf[0]]["name"], leaf[1], task.payload["services"])
            options.append([leaf[2], *(one for one in known if one != leaf[2] and (leaf in unsaid or _says(text, one)))])
        for chosen in itertools.product(*options):
            reading = json.loads(json.dumps(task.payload))
            for (place, name, _), value in zip(leaves, chosen, strict=True):
                reading["calls"][place]["arguments"][name] = {"value": value}
            yield reading

    def _carried_out(self, payload: str) -> list[Run]:
        """Every way to carry a subgraph out that does not fail: where a function returned several values, each is taken."""
        task = json.loads(payload)
        tools = [one.schema for one in self.functions.values() if one.service in task["services"]]
        runs: list[Run] = []
        waiting: list[list[int]] = [[]]  # which of the values to take, in the order in which there is a choice
        while waiting and len(runs) < MOST_READINGS:
            chosen = waiting.pop()
            services, outputs, made, found, before = Services(task["services"], tools), [], [], [], ""
            choices = iter(chosen)
            for call in task["calls"]:
                arguments: dict[str, Any] = {}
                for name, given in call["arguments"].items():
                    values = [given["value"]] if "value" in given else values_of(outputs[given["from"]], given["field"])
                    pick = next(choices, None) if len(values) > 1 else 0
                    if pick is None:
                        waiting += [[*chosen, one] for one in range(min(len(values), MOST_READINGS))]
                    if pick is None or not values:
                        break
                    arguments[name] = values[pick]
                    found += [] if "value" in given else [values[pick]]
                if len(arguments) < len(call["arguments"]):
                    break
                before = _address(services)
                made.append(FunctionCall(call["name"], arguments))
                text, readable = services.call(made[-1])
                if not readable:
                    break
                outputs.append(json.loads(text))
            if len(outputs) == len(task["calls"]):
                final = _address(services)
                runs.append(Run(calls=made, found=found, changed=final != before, final=final))
        return runs


def values_of(output: Any, field: str) -> list[Any]:
    """The distinct values that a field has anywhere in what a function returned."""
    found: list[Any] = []
    if isinstance(output, dict):
        found += [output[field]] if field in output else []
        output = [value for key, value in output.items() if key != field]
    if isinstance(output, list):
        found += [value for one in output for value in values_of(one, field)]
    return [value for place, value in enumerate(found) if value not in found[:place]]


def _functions(folder: str) -> Iterator[tuple[str, Function]]:
    for service, document, _ in _documents(folder):
        text = document.get("description", "").rpartition("Tool description:")[2].strip()
        parameters = document["parameters"]
        yield (
            document["name"],
            Function(
                service=service,
                schema=function_schema(document),
                says=re.split(r"\.(?:\s|$)", text)[0],
                takes=(*parameters.get("required", ()), *NEEDED.get(document["name"], ())),
                gives=tuple(document.get("response", {}).get("properties", ())),
            ),
        )


def _documents(folder: str) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Service, document, and the document as a tool with its response."""
    for service, file in DOCUMENTS.items():
        for document in read_json_lines(f"{folder.rstrip('/')}/{file}"):
            schema = function_schema(document)
            yield service, document, {"function": {**schema["function"], "response": json_schema(document.get("response", {}))}}


def _address(services: Services) -> str:
    return address(json.dumps(_plain(services.state()), sort_keys=True))


def _plain(value: Any) -> Any:
    """With 5 where it has 5.0."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pattern(value: Any) -> str:
    return rf"(?<![\w.]){re.escape(_word(value))}(?!\w)"


def _says(text: str, value: Any) -> bool:
    return bool(_word(value)) and re.search(_pattern(value), text) is not None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
