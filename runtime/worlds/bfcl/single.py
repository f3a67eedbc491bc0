"""BFCL's single Python calls: one request, one function on offer, one call expected.

The published answer lists for each argument the values that are right; an empty text among them says that the argument may be left
out. Texts are compared without case, spaces and the punctuation `,./-_*^`, numbers by value.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....specs.worlds import BfclSettings
from ..protocol import Message, Task
from ..rows import AnswerEpisode, FunctionCall, RowWorld, Script, bad_field, call_message, calls_of, read_json_lines
from .functions import function_schema

_LOOSE = re.compile(r"[ ,./\-_*^]")


class BfclWorld(RowWorld):
    """One call a task."""

    name = "bfcl"

    def __init__(self, settings: BfclSettings) -> None:
        super().__init__(settings.split)
        self._data, self._answers = settings.data, settings.answers

    def read(self) -> Iterator[Task]:
        answers = {row.get("id"): row.get("ground_truth") for row in read_json_lines(self._answers)}
        for row in read_json_lines(self._data):
            expected = answers.get(row.get("id"))
            try:
                messages = [dict(message) for turn in row["question"] for message in turn]
                tools = [function_schema(one) for one in row["function"]]
                name, allowed = _only(expected)
            except (KeyError, TypeError, ValueError) as error:
                raise bad_field(self._data, row, f"it wants `question`, `function` and one expected call ({error})") from error
            key = f"{messages[-1]['content']} [{name}]"
            payload = {"messages": messages, "name": name, "allowed": allowed}
            yield Task(world=self.name, key=key, payload=payload, tools=tools)

    def start(self, task: Task) -> "BfclEpisode":
        return BfclEpisode(task)

    def reference(self, task: Task) -> Script:
        return Script([call_message([published_call(task)])])


class BfclEpisode(AnswerEpisode):
    """One request."""

    def opening(self) -> list[Message]:
        return [dict(message) for message in self.task.payload["messages"]]

    def judge(self, message: Message) -> bool:
        calls = calls_of(message)
        if len(calls) != 1 or calls[0] is None or calls[0].name != self.task.payload["name"]:
            return False
        return arguments_are_right(calls[0].arguments, self.task.payload["allowed"])


def published_call(task: Task) -> FunctionCall:
    """The call that the answer names first: every argument's first value, those that may be left out left out."""
    allowed: Mapping[str, list[Any]] = task.payload["allowed"]
    return FunctionCall(task.payload["name"], {name: _first(values) for name, values in allowed.items() if "" not in values})


def arguments_are_right(arguments: Mapping[str, Any], allowed: Mapping[str, list[Any]]) -> bool:
    """Whether every argument has one of its values, no other is there, and none is missing that may not be left out."""
    if not set(arguments) <= set(allowed):
        return False
    return all(any(_same(arguments[name], one) for one in allowed[name]) for name in arguments) and all(
        name in arguments or "" in values for name, values in allowed.items()
    )


def _first(values: list[Any]) -> Any:
    value = values[0]
    if isinstance(value, dict):  # of an object, too, each entry lists its values
        return {name: _first(inner) for name, inner in value.items() if "" not in inner}
    if isinstance(value, list):
        return [_first([one]) if isinstance(one, dict) else one for one in value]
    return value


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(given, bool):
        return given is wanted
    if isinstance(wanted, (int, float)) and isinstance(given, (int, float)):
        return given == wanted
    if isinstance(wanted, str) and isinstance(given, str):
        return _LOOSE.sub("", given).lower() == _LOOSE.sub("", wanted).lower()
    if isinstance(wanted, list) and isinstance(given, list):
        return len(given) == len(wanted) and all(_same(one, other) for one, other in zip(given, wanted, strict=True))
    if isinstance(wanted, dict) and isinstance(given, dict):
        return arguments_are_right(given, wanted)
    return given == wanted


def _only(expected: Any) -> tuple[str, dict[str, list[Any]]]:
    if not isinstance(expected, list) or len(expected) != 1 or not isinstance(expected[0], dict) or len(expected[0]) != 1:
        raise ValueError("no single expected call")
    name, allowed = next(iter(expected[0].items()))
    if not all(isinstance(values, list) and values for values in allowed.values()):
        raise ValueError("an argument lists no values")
    return name, allowed
