"""Tasks and trajectories as records, and the one JSON Lines schema that they are written in.

A task is `x = (instruction, domain, target, required evidence, applicable verifiers)`; a trajectory is
`[(state, action, observation, verdict), ...]` and an answer (Agents-A1 report, arXiv 2606.30616, knowledge-action section).

A trajectory keeps every message once, in OpenAI's chat form, and its steps point into them. The state of a step is what came
before it: the messages of its context, and the evidence that earlier steps showed. Where a context was compacted, `restarts` says
at which message the model's context began anew with the opening alone. What the model wrote is what an assistant said, so loss
masks follow from the roles.

What it does: reads, checks and writes records. What it does not do: other forms (`conversions.py`), or tokens (`data/renderer.py`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec

from ...compiler.canonical import digest
from ..data.trajectories import SCHEMA, RowError, bad_row, chat_tools, contexts_of, json_lines, messages_of, read_json
from ..worlds.protocol import Message

FIELDS = ("schema", "id", "task", "messages", "tools", "steps", "restarts", "answer", "status", "reward", "provenance")


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecord:
    """What is asked, and how one knows that it was done."""

    instruction: str
    domain: str
    key: str  # canonical form; two tasks with one key are the same task
    target: str | None = None  # the right answer; None where only the world can tell
    evidence: tuple[str, ...] = ()  # ids of the nodes of the graph that the answer needs
    verifiers: tuple[str, ...] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)  # JSON; all that its world needs to start it again

    def as_json(self) -> dict[str, Any]:
        """As it stands in a row."""
        return {
            "domain": self.domain,
            "key": self.key,
            "instruction": self.instruction,
            "target": self.target,
            "evidence": list(self.evidence),
            "verifiers": list(self.verifiers),
            "payload": dict(self.payload),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One `(state, action, observation, verdict)`."""

    message: int  # place of the assistant's message
    call: int | None = None  # which of its tool calls; None where it made none
    observation: int | None = None  # place of the message that answered; None at the end
    verdict: float | None = None  # the step verifier's word; None where none applies
    readable: bool = True  # whether the world could read the action
    evidence: tuple[str, ...] = ()  # ids of the nodes that the observation showed

    def as_json(self) -> dict[str, Any]:
        """As it stands in a row."""
        return {
            "message": self.message,
            "call": self.call,
            "observation": self.observation,
            "verdict": self.verdict,
            "readable": self.readable,
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryRecord:
    """One episode."""

    task: TaskRecord
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None  # None: the source does not say
    steps: tuple[StepRecord, ...] = ()
    restarts: tuple[int, ...] = ()  # messages at which a compacted context begins, after the opening
    answer: str | None = None  # the final one; None where the episode never came to it
    status: str = "answered"  # or `forced`, or what ended the episode without an answer
    reward: float | None = None  # the outcome verifier's word
    provenance: Mapping[str, Any] = field(default_factory=dict)  # JSON: generator, roles, checks, licence, where it came from

    @property
    def id(self) -> str:
        """Content address: 32 hexadecimal digits over task, messages and tools."""
        tools = None if self.tools is None else [dict(tool) for tool in self.tools]
        return digest([self.task.as_json(), list(self.messages), tools])[:32]

    @property
    def opening(self) -> int:
        """Number of messages before the model's first."""
        return next((place for place, one in enumerate(self.messages) if written_by_model(one)), len(self.messages))

    def contexts(self) -> list[list[Message]]:
        """The conversations that the model had: one, and another after every compaction."""
        return contexts_of(list(self.messages), self.restarts)

    def as_json(self) -> dict[str, Any]:
        """As a row. Keys keep their order: that of a tool's parameters is the order in which the model writes them."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "task": self.task.as_json(),
            "messages": list(self.messages),
            **({} if self.tools is None else {"tools": [dict(tool) for tool in self.tools]}),
            "steps": [step.as_json() for step in self.steps],
            "restarts": list(self.restarts),
            "answer": self.answer,
            "status": self.status,
            "reward": self.reward,
            "provenance": dict(self.provenance),
        }

    def line(self) -> str:
        """The row as text, with its line end."""
        return json.dumps(self.as_json(), ensure_ascii=False, allow_nan=False) + "\n"

    def with_provenance(self, **more: Any) -> "TrajectoryRecord":
        """The same record with more said about where it came from."""
        return replace(self, provenance={**self.provenance, **more})


def written_by_model(message: Message) -> bool:
    """Whether the loss falls on a message."""
    return message["role"] == "assistant"


def write_rows(url: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON Lines to a path or fsspec URL; returns how many."""
    count = 0
    with fsspec.open(url, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def write_records(url: str, records: Iterable[TrajectoryRecord]) -> int:
    """Write a file of records to a path or fsspec URL; returns how many."""
    return write_rows(url, (record.as_json() for record in records))


def read_records(url: str) -> Iterator[TrajectoryRecord]:
    """The records of a file, in order.

    Raises:
        UserError: exit code 3; the file is missing or has a bad row, which is named.
    """
    for row, line in json_lines(url):
        if not line.strip():
            continue
        try:
            yield record_from_json(read_json(line, row))
        except RowError as error:
            raise bad_row(url, row, str(error)) from None


def record_from_json(data: Mapping[str, Any]) -> TrajectoryRecord:
    """A record from its row.

    Raises:
        RowError: it is of another schema, or a field is missing, unknown, or not what it should be.
    """
    if data.get("schema") != SCHEMA:
        raise RowError(f"`schema` is {data.get('schema')!r}; this version reads {SCHEMA}")
    if unknown := sorted(set(data) - set(FIELDS)):
        raise RowError(f"`{unknown[0]}` is no field of {SCHEMA}")
    messages = tuple(messages_of(data))
    places = range(len(messages))
    try:
        record = TrajectoryRecord(
            task=task_from_json(data["task"]),
            messages=messages,
            tools=None if (tools := chat_tools(data)) is None else tuple(tools),
            steps=tuple(_step(step, places) for step in data["steps"]),
            restarts=tuple(_place(one, places) for one in data["restarts"]),
            answer=data["answer"],
            status=str(data["status"]),
            reward=None if data["reward"] is None else float(data["reward"]),
            provenance=dict(data["provenance"]),
        )
    except KeyError as error:
        raise RowError(f"no `{error.args[0]}`") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise RowError(f"not a record of {SCHEMA}: {error}") from None
    if data.get("id") not in (None, record.id):
        raise RowError("`id` is not that of task, messages and tools: the row was edited")
    return record


def task_from_json(data: Mapping[str, Any]) -> TaskRecord:
    """A task from its JSON. Raises KeyError where a field is missing."""
    return TaskRecord(
        instruction=data["instruction"],
        domain=data["domain"],
        key=data["key"],
        target=data["target"],
        evidence=tuple(data["evidence"]),
        verifiers=tuple(data["verifiers"]),
        payload=dict(data["payload"]),
    )


def _step(data: Mapping[str, Any], places: Sequence[int]) -> StepRecord:
    return StepRecord(
        message=_place(data["message"], places),
        call=data["call"],
        observation=None if data["observation"] is None else _place(data["observation"], places),
        verdict=None if data["verdict"] is None else float(data["verdict"]),
        readable=bool(data["readable"]),
        evidence=tuple(data["evidence"]),
    )


def _place(value: Any, places: Sequence[int]) -> int:
    if isinstance(value, bool) or value not in places:
        raise ValueError(f"{value!r} is no place of a message")
    return int(value)
