"""Worlds whose tasks are rows of files: what they share.

A task is one row. The setting `split` says which are held out: a quarter by the same hash as in every world, none, or all. Such a
world has no imperfect demonstrator: what was published is what it can show.
"""

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec

from ...specs.diagnostics import ExitCode, UserError
from ..files import unreadable
from .base import is_heldout
from .protocol import Episode, Message, Solver, Split, Step, Task, WorldError


def read_json_lines(url: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file, in order.

    Raises:
        UserError: it cannot be read or a row is no JSON object (exit 3); file and row are named.
    """
    rows: list[dict[str, Any]] = []
    try:
        with fsspec.open(url, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    rows.append(_row(url, number, line))
    except (OSError, ImportError) as error:
        raise unreadable(url, error) from error
    if not rows:
        raise UserError(f"{url} is empty", exit_code=ExitCode.SPEC)
    return rows


def _row(url: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{url}, row {number}: not JSON: {error}", exit_code=ExitCode.SPEC) from error
    if not isinstance(row, dict):
        raise UserError(f"{url}, row {number}: not a JSON object", exit_code=ExitCode.SPEC)
    return row


def bad_field(url: str, row: Mapping[str, Any], what: str) -> UserError:
    """The error for a row that is not what its benchmark publishes."""
    name = row.get("id", row.get("key", hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest()[:12]))
    return UserError(f"{url}, row {name}: {what}", exit_code=ExitCode.SPEC, fix="give the file as the benchmark publishes it")


class RowWorld(ABC):
    """A world whose tasks are read from files."""

    name: str
    tools: Sequence[Mapping[str, Any]] = ()

    def __init__(self, split: str) -> None:
        self._split = split

    @abstractmethod
    def read(self) -> Iterator[Task]:
        """Every task of the files, in their order.

        Raises:
            UserError: a file cannot be read, or a row is not what it should be.
        """

    @abstractmethod
    def start(self, task: Task) -> Episode:
        """A new episode of a task."""

    @abstractmethod
    def reference(self, task: Task) -> Solver:
        """The published answer, acted out.

        Raises:
            WorldError: none is published.
        """

    @cached_property
    def all_tasks(self) -> list[Task]:
        """Every distinct task; of two rows that ask the same, the first."""
        found: dict[str, Task] = {}
        for task in self.read():
            found.setdefault(task.key, task)
        return list(found.values())

    def tasks(self, split: Split, count: int, seed: int) -> list[Task]:
        """`count` tasks of a split, in an order that the seed decides.

        Raises:
            WorldError: there are fewer.
        """
        own = [task for task in self.all_tasks if self._is_in(split, task)]
        if len(own) < count:
            raise WorldError(
                f"world `{self.name}` has {len(own)} {split} tasks in its files, and {count} are asked for",
                fix="ask for fewer, or change the setting `split`",
            )
        random.Random(f"{self.name}:{split}:{seed}").shuffle(own)
        return own[:count]

    def _is_in(self, split: Split, task: Task) -> bool:
        return is_heldout(self.name, task.key) == (split == "heldout") if self._split == "by_hash" else self._split == split

    def demonstrator(self, task: Task, *, seed: int, habit_rate: float, slip_rate: float) -> Solver:
        """The published answer.

        Raises:
            WorldError: none is published, or an imperfect demonstrator is asked for.
        """
        if habit_rate or slip_rate:
            message = f"world `{self.name}` demonstrates what was published, without habits or slips"
            raise WorldError(message, fix="remove `habit_rate` and `slip_rate`")
        return self.reference(task)


@dataclass(slots=True)
class Script:
    """A solver that says prepared messages in turn."""

    messages: Sequence[Message]
    said: int = 0

    def next(self, observations: Sequence[Message]) -> Message:
        """The next one."""
        self.said += 1
        return self.messages[self.said - 1]


class AnswerEpisode(ABC):
    """An episode of one question and one answer. The answer ends it, with or without calls."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps: list[Step] = []
        self.done = False
        self._outcome = 0.0

    @abstractmethod
    def opening(self) -> list[Message]:
        """The messages before the model's turn."""

    @abstractmethod
    def judge(self, message: Message) -> bool:
        """Whether the answer is right. A call that cannot be read is wrong, never an exception."""

    def act(self, message: Message) -> list[Message]:
        """Judge the answer."""
        if not self.done:
            self.done = True
            self._outcome = float(self.judge(message))
            evidence = {"evidence": [self.task.key], "observations": []}
            said = bool(message.get("content") or message.get("tool_calls"))
            self.steps.append(Step(state=evidence, action=message, observation=None, verdict=self._outcome, readable=said))
        return []

    def outcome(self) -> float:
        """1.0 where the answer was right."""
        return self._outcome


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call in a model's message."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def calls_of(message: Message) -> list[FunctionCall | None]:
    """The calls of a message; None for one that cannot be read."""
    calls = message.get("tool_calls")
    return [_call(one) for one in calls] if isinstance(calls, list) else []


def _call(raw: Any) -> FunctionCall | None:
    try:
        name, arguments = raw["function"]["name"], raw["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return FunctionCall(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def call_message(calls: Sequence[FunctionCall], first_number: int = 1) -> Message:
    """An assistant's message of calls, numbered from `first_number`."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"call_{number}", "type": "function", "function": {"name": one.name, "arguments": json.dumps(one.arguments)}}
            for number, one in enumerate(calls, start=first_number)
        ],
    }
