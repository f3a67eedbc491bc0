"""BFCL's multi-turn tasks: a user asks several things one after the other, and services with a state carry them out.

The reference calls run beside the model's on services of their own. After each of the user's turns two things must hold: the
model's services are in the reference's state, and every answer that the reference's calls have had so far, the model's calls have
had too (the benchmark's state and response checks). Detours are free. The outcome is 1 where they held after every turn.
"""

import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from jsonschema import Draft202012Validator

from ....specs.worlds import BfclMultiTurnSettings
from ..protocol import Message, Step, Task
from ..rows import FunctionCall, RowWorld, Script, bad_field, call_message, calls_of, read_json_lines
from .apis import APIS, DOCUMENTS, Api, ApiError
from .functions import function_schema, python_call

SYSTEM = "Carry out the user's requests with the tools. When a request is done, say so without a call; the user then goes on."


class BfclMultiTurnWorld(RowWorld):
    """Dialogues over eight simulated services."""

    name = "bfcl_multi_turn"

    def __init__(self, settings: BfclMultiTurnSettings) -> None:
        super().__init__(settings.split)
        self._data, self._answers, self._documents = settings.data, settings.answers, settings.documents

    @cached_property
    def schemas(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The functions of every service, by service and name."""
        return {
            api: {row["name"]: function_schema(row) for row in read_json_lines(f"{self._documents.rstrip('/')}/{file}")}
            for api, file in DOCUMENTS.items()
        }

    def read(self) -> Iterator[Task]:
        answers = {row.get("id"): row.get("ground_truth") for row in read_json_lines(self._answers)}
        for row in read_json_lines(self._data):
            try:
                yield self._task(row, answers.get(row.get("id")))
            except (KeyError, TypeError, ValueError) as error:
                raise bad_field(self._data, row, f"not a multi-turn task with its reference calls ({error})") from error

    def _task(self, row: Mapping[str, Any], reference: Any) -> Task:
        involved = sorted(row["involved_classes"])
        strangers = [name for name in involved if name not in APIS]
        if strangers:
            raise ValueError(f"there is no service {', '.join(strangers)}")
        turns = ["\n".join(message["content"] for message in turn) for turn in row["question"]]
        functions = {name: schema for api in involved for name, schema in self.schemas[api].items()}
        parameters = {name: list(inspect.signature(getattr(_api_of(name, involved), name)).parameters)[1:] for name in functions}
        calls = [[python_call(text, parameters) for text in turn] for turn in reference]
        if len(turns) != len(calls):
            raise ValueError(f"{len(turns)} turns, and reference calls for {len(calls)}")
        payload = {
            "turns": turns,
            "config": {api: row["initial_config"].get(api, {}) for api in involved},
            "reference": [[{"name": one.name, "arguments": one.arguments} for one in turn] for turn in calls],
        }
        excluded = row.get("excluded_function", ())
        tools = [schema for name, schema in functions.items() if name not in excluded]
        return Task(world=self.name, key=f"{row['id']}: {' / '.join(turns)}", payload=payload, tools=tools)

    def start(self, task: Task) -> "BfclMultiTurnEpisode":
        return BfclMultiTurnEpisode(task)

    def reference(self, task: Task) -> Script:
        """The reference calls, one a message, and a word after each of the user's turns."""
        messages: list[Message] = []
        number = 0
        for turn in task.payload["reference"]:
            for call in turn:
                number += 1
                messages.append(call_message([FunctionCall(call["name"], call["arguments"])], number))
            messages.append({"role": "assistant", "content": "Done."})
        return Script(messages)


class Services:
    """The services of one side of a task, and what their calls have answered."""

    def __init__(self, config: Mapping[str, Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """`tools` are the functions that may be called, their arguments checked; without, every function of the services."""
        self.apis = {name: APIS[name](of_api) for name, of_api in config.items()}
        self.answers: Counter[str] = Counter()
        self._validators = tools and {
            tool["function"]["name"]: Draft202012Validator({**tool["function"]["parameters"], "additionalProperties": False})
            for tool in tools
        }

    def call(self, call: FunctionCall | None) -> tuple[str, bool]:
        """Carry out a call. Returns the observation, and whether the call could be read."""
        found = self._answer(call)
        text = json.dumps(found, ensure_ascii=False)
        self.answers[text] += 1
        return text, "error" not in found

    def state(self) -> dict[str, Any]:
        """The state of all services, as JSON sees it: 5 and 5.0 are the same."""
        return json.loads(json.dumps({name: api.state() for name, api in self.apis.items()}, sort_keys=True))

    def _answer(self, call: FunctionCall | None) -> dict[str, Any]:
        if call is None:
            return {"error": "the call cannot be read: it wants a name and a JSON object of arguments"}
        api = next((api for api in self.apis.values() if _offers(api, call.name)), None)
        if api is None or (self._validators is not None and call.name not in self._validators):
            return {"error": f"there is no function {call.name}"}
        if self._validators is not None:
            problem = next(self._validators[call.name].iter_errors(call.arguments), None)
            if problem is not None:
                return {"error": f"{call.name}: {problem.message[:200]}"}
        try:
            return getattr(api, call.name)(**call.arguments)
        except ApiError as refusal:
            return {"error": str(refusal)}
        except (TypeError, ValueError, ArithmeticError) as error:
            return {"error": f"{call.name}: {error}"}


class BfclMultiTurnEpisode:
    """A dialogue in progress."""

    def __init__(self, task: Task) -> None:
        self.steps: list[Step] = []
        self.done = False
        self._task = task
        self._turn = 0
        self._kept = True  # whether all turns so far ended as the reference's did
        self._observations: list[str] = []
        self._model = Services(task.payload["config"], task.tools)
        self._reference = Services(task.payload["config"], None)

    def opening(self) -> list[Message]:
        """What the user asks first."""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self._task.payload["turns"][0]}]

    def act(self, message: Message) -> list[Message]:
        """Carry out calls; a message without any ends the user's turn, and the user asks the next thing or leaves."""
        if self.done:
            return []
        if message.get("tool_calls"):
            return [self._carry_out(message, number, call) for number, call in enumerate(calls_of(message))]
        held = self._turn_held()
        self._kept = self._kept and held
        self._turn += 1
        turns = self._task.payload["turns"]
        self.done = self._turn == len(turns)
        asked = None if self.done else turns[self._turn]
        self._record(message, asked, float(held), readable=bool(message.get("content")))
        return [] if asked is None else [{"role": "user", "content": asked}]

    def outcome(self) -> float:
        """1.0 where every turn ended as the reference's did."""
        return float(self.done and self._kept)

    def _turn_held(self) -> bool:
        for call in self._task.payload["reference"][self._turn]:
            self._reference.call(FunctionCall(call["name"], call["arguments"]))
        return self._model.state() == self._reference.state() and self._reference.answers <= self._model.answers

    def _carry_out(self, message: Message, number: int, call: FunctionCall | None) -> Message:
        text, readable = self._model.call(call)
        self._record(message, text, None, readable=readable)
        self._observations.append(text)
        raw = message["tool_calls"][number]
        identity = raw.get("id") if isinstance(raw, dict) else None
        return {"role": "tool", "tool_call_id": identity or f"call_{len(self._observations)}", "content": text}

    def _record(self, message: Message, observation: str | None, verdict: float | None, *, readable: bool) -> None:
        asked = self._task.payload["turns"][: self._turn + 1]
        state = {"evidence": list(asked), "observations": list(self._observations)}
        self.steps.append(Step(state=state, action=message, observation=observation, verdict=verdict, readable=readable))


def _api_of(function: str, involved: Sequence[str]) -> type[Api]:
    for name in involved:
        if _offers(APIS[name], function):
            return APIS[name]
    raise ValueError(f"no service has the function {function} that is documented")


def _offers(api: Any, name: str) -> bool:
    return not name.startswith("_") and name != "state" and callable(getattr(api, name, None))
