"""Trajectories from files: JSON Lines in OpenAI's chat form, or questions and answers.

What it does: reads every row, says exactly what is wrong with the first bad one, and counts what was kept and what was filtered
out, and why. What it does not do: skip a bad row, guess, or change a text.

A chat row has `messages` or `traj`; each message has a role (system, user, assistant, tool) and a text. An assistant's text may be
null beside `tool_calls`. `tools` (function schemas) and `reward` are optional. Other fields are ignored, but for `schema`: a row of
our own schema (`knowledge/records.py`) is one conversation for each context of its episode, and one of another version is refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import fsspec

from ...specs.build import is_finite_number
from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import TrajectorySource
from ..files import unreadable
from ..worlds.protocol import Message
from .template import call_arguments

ROLES = ("system", "user", "assistant", "tool")
KEPT = ("reasoning_content", "name", "tool_call_id")  # texts of a message beside its content
SCHEMA_FAMILY = "polymath.trajectory."
SCHEMA = SCHEMA_FAMILY + "v1"  # of the rows that Polymath writes


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One row, or one context of an episode whose context was compacted on the way."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None  # None where the row does not say
    row: int  # line of the file, from 1


@dataclass(kw_only=True, slots=True)
class SourceReport:
    """What became of the rows of a source. `rows == kept + sum(filtered.values())` once it is read."""

    url: str
    rows: int = 0  # conversations: every context of a compacted episode counts
    kept: int = 0
    filtered: Counter[str] = field(default_factory=Counter)  # rows left out, by reason
    truncated: Counter[str] = field(default_factory=Counter)  # rows kept in part, by reason
    tokens: int = 0  # of the kept documents
    written_tokens: int = 0  # of these, what the model is trained to write
    sha256: str = ""  # of the file

    def as_json(self) -> dict[str, Any]:
        """For `result.json`."""
        return {
            "url": self.url,
            "rows": self.rows,
            "kept": self.kept,
            "filtered": dict(sorted(self.filtered.items())),
            "truncated": dict(sorted(self.truncated.items())),
            "tokens": self.tokens,
            "written_tokens": self.written_tokens,
            "sha256": self.sha256,
            "summary": self.summary(),
        }

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{self.url}: kept {self.kept} of {self.rows} rows"]
        for verb, counts in (("left out", self.filtered), ("cut", self.truncated)):
            parts += [f"{verb} {count} ({reason})" for reason, count in sorted(counts.items())]
        return ", ".join(parts)


class RowError(Exception):
    """What is wrong with a row, in words that follow "row 17: "."""


def read_source(url: str, source: TrajectorySource, report: SourceReport) -> Iterator[Conversation]:
    """The conversations of a file, in order, without those that the source's `minimum_reward` filters out.

    Args:
        url: path or fsspec URL, resolved.
        source: format and filter.
        report: counted up on the way; complete when the iterator ends.

    Raises:
        UserError: exit code 3; the file is missing, empty or has a bad row. File and row are named.
    """
    sha256 = hashlib.sha256()
    for row, line in json_lines(url):
        sha256.update(line)
        if not line.strip():
            continue
        try:
            conversations, reward = _read_row(line, source.format, row)
        except RowError as error:
            raise bad_row(url, row, str(error)) from None
        report.rows += len(conversations)
        if source.minimum_reward is not None and reward is not None and reward < source.minimum_reward:
            report.filtered[f"reward below {source.minimum_reward:g}"] += len(conversations)
            continue
        yield from conversations
    if not report.rows:
        raise UserError(f"{url} is empty", exit_code=ExitCode.SPEC, fix="a trajectory file has one JSON object per line")
    report.sha256 = sha256.hexdigest()


def bad_row(url: str, row: int, what: str) -> UserError:
    """The error for a row that cannot be used."""
    return UserError(
        f"{url}, row {row}: {what}", exit_code=ExitCode.SPEC, fix="mend or delete the row; docs/data.md describes the formats"
    )


def json_lines(url: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1.

    Raises:
        UserError: exit code 3; it is not there or cannot be read.
    """
    try:
        with fsspec.open(url, "rb") as stream:
            yield from enumerate(stream, start=1)
    except (OSError, ImportError, ValueError) as error:
        raise unreadable(url, error) from error


def read_json(line: bytes, row: int) -> dict[str, Any]:
    """The object of a line.

    Raises:
        RowError: it is none, or holds what is no character.
    """
    try:
        data = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise RowError(f"a JSON {_kind(data)}, not an object")
    if rb"\ud" in line.lower():
        _refuse_lone_surrogates(data)
    return data


def _read_row(line: bytes, form: str, row: int) -> tuple[list[Conversation], float | None]:
    data = read_json(line, row)
    reward = data.get("reward")
    if reward is not None and not is_finite_number(reward):
        raise RowError(f"`reward` is {json.dumps(reward)[:40]}, not a number")
    messages = _question_answer(data) if form == "question_answer" else chat_messages(data)
    tools = chat_tools(data)
    contexts = _contexts(data, messages) if "schema" in data else [messages]
    return [Conversation(messages=context, tools=tools, row=row) for context in contexts], reward


def _contexts(data: Mapping[str, Any], messages: Sequence[Message]) -> list[list[Message]]:
    """The contexts of a row that names a schema; one that is not ours means nothing here."""
    schema = data["schema"]
    if not isinstance(schema, str) or not schema.startswith(SCHEMA_FAMILY):
        return [list(messages)]
    if schema != SCHEMA:
        raise RowError(f"`schema` is {schema!r}; this version reads {SCHEMA}")
    restarts = data.get("restarts", [])
    if not isinstance(restarts, list) or not all(type(place) is int for place in restarts):
        raise RowError("`restarts` is not a list of whole numbers")
    try:
        return contexts_of(messages, restarts)
    except ValueError as error:
        raise RowError(f"`restarts`: {error}") from None


def contexts_of(messages: Sequence[Message], restarts: Sequence[int]) -> list[list[Message]]:
    """The conversations that a model had in an episode: at each restart its context began anew, with the opening alone.

    Raises:
        ValueError: restarts are not ascending places after the opening.
    """
    opening = next((place for place, one in enumerate(messages) if one["role"] == "assistant"), len(messages))
    bounds = [opening, *restarts, len(messages)]
    if any(after <= before for before, after in pairwise(bounds)):
        raise ValueError(f"{list(restarts)} are not ascending places between the opening and the end")
    return [[*messages[:opening], *messages[start:end]] for start, end in pairwise(bounds)]


def chat_tools(data: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The function schemas of a row; None where it names none.

    Raises:
        RowError: they are not a list of objects.
    """
    tools = data.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowError("`tools` is not a list of function schemas")
    return tools


def _question_answer(data: Mapping[str, Any]) -> list[Message]:
    for key in ("question", "answer"):
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise RowError(f"`{key}` is {'missing' if key not in data else 'not a text with anything in it'}")
    return [{"role": "user", "content": data["question"]}, {"role": "assistant", "content": data["answer"]}]


def chat_messages(data: Mapping[str, Any]) -> list[Message]:
    """The messages of a row in OpenAI's chat form, each checked, with something to learn in them.

    Raises:
        RowError: one is not what a conversation holds, or none is the assistant's.
    """
    read = messages_of(data)
    if not any(message["role"] == "assistant" for message in read):
        raise RowError("the assistant wrote nothing, so there is nothing to learn")
    return read


def messages_of(data: Mapping[str, Any]) -> list[Message]:
    """The messages of a row in OpenAI's chat form, each checked; an episode may have failed before the assistant wrote any.

    Raises:
        RowError: one is not what a conversation holds.
    """
    messages = data.get("messages", data.get("traj"))
    if messages is None:
        hint = "; it has `question` and `answer`: use `format: question_answer`" if "question" in data and "answer" in data else ""
        raise RowError(f"neither `messages` nor `traj`{hint}")
    if not isinstance(messages, list) or not messages:
        raise RowError("`messages` is not a list with anything in it")
    read = [_message(message, f"message {number}") for number, message in enumerate(messages, start=1)]
    if read[0]["role"] == "assistant":
        raise RowError("message 1 is the assistant's: there is nothing that it answers")
    return read


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise RowError(f"{where} is a JSON {_kind(message)}, not an object")
    role = message.get("role")
    if role not in ROLES:
        raise RowError(f"{where} has the role {role!r}; roles are {', '.join(ROLES)}")
    read: Message = {"role": role, "content": _content(message.get("content"), where)}
    if calls := message.get("tool_calls"):
        if role != "assistant":
            raise RowError(f"{where} ({role}) has tool calls; only the assistant calls tools")
        if not isinstance(calls, list):
            raise RowError(f"{where} has `tool_calls` that are not a list")
        read["tool_calls"] = [_tool_call(call, f"{where}, tool call {number}") for number, call in enumerate(calls, start=1)]
    if read["content"] is None and not calls:
        raise RowError(f"{where} ({role}) has no `content`" + (" and no `tool_calls`" if role == "assistant" else ""))
    if role == "assistant" and not read["content"] and not calls:
        raise RowError(f"{where} (assistant) is empty")
    return read | {key: message[key] for key in KEPT if isinstance(message.get(key), str)}


def _content(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        for part in content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise RowError(f"{where} has a part of type {part.get('type')!r}; only text can be read")
        return "".join(part["text"] for part in content)
    raise RowError(f"{where} has a `content` that is a JSON {_kind(content)}, not a text")


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(f"{where} has no `function` with a `name`")
    arguments = function.get("arguments")
    if not isinstance(arguments, (str, dict)):
        raise RowError(f"{where} ({function['name']}) has no `arguments`")
    try:
        text = json.dumps(call_arguments(arguments), ensure_ascii=False, allow_nan=False)
        text.encode()  # refuses half a surrogate pair, which the outer JSON text could not show
    except (ValueError, RecursionError):
        raise RowError(f"{where} ({function['name']}) has `arguments` that are not a JSON object") from None
    written = arguments if isinstance(arguments, str) else text  # letter for letter where it is text already
    read = {"type": "function", "function": {"name": function["name"], "arguments": written}}
    return read | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _refuse_lone_surrogates(data: Any) -> None:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError("half of a surrogate pair (\\ud800 to \\udfff) stands alone; it is no character") from None


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return kinds[type(value)]
