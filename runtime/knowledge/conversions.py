"""Trajectory records to and from what other tools read: OpenAI chat rows, ShareGPT rows, and Parquet files.

Every way there and back gives the record that went in. What a form has no place for (task, steps, verdicts) travels beside it under
`polymath`. A row that somebody else wrote becomes a record whose task is its last opening message; its own further fields travel
in the provenance under `row`, and come back too.

Two things are spelt in one way and come back in that spelling: arguments of a call that were an object are JSON text, and text
parts are one text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec

from ...compiler.canonical import digest
from ...specs.diagnostics import ExitCode, UserError
from ..data.trajectories import RowError, bad_row, chat_messages, chat_tools, json_lines, read_json
from ..worlds.protocol import Message
from .records import SCHEMA, TaskRecord, TrajectoryRecord, record_from_json, written_by_model

BESIDE = "polymath"  # the key of what another form has no place for
SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
CALLS = "function_call"  # ShareGPT's role of an assistant that calls tools
ROLES = {name: role for role, name in SHAREGPT_ROLES.items()} | {CALLS: "assistant", "tool": "tool", "user": "user"}
PARQUET_BATCH = 256  # records
NO_ROWS = {b"SQLite format 3": "a graph", b"PAR1": "a Parquet file", b"BZh": "packed (bzip2)", b"\x1f\x8b": "packed (gzip)"}


def to_openai(record: TrajectoryRecord) -> dict[str, Any]:
    """A row of OpenAI's chat form: `messages`, `tools`, and the rest under `polymath`; a foreign row as it came."""
    row = record.as_json()
    messages = {"messages": row.pop("messages")}
    tools = {"tools": row.pop("tools")} if "tools" in row else {}
    if (foreign := record.provenance.get("row")) is not None:
        return {**messages, **tools, **foreign}
    return {**messages, **tools, "reward": record.reward, BESIDE: row}


def from_openai(row: Mapping[str, Any], domain: str = "imported") -> TrajectoryRecord:
    """The record of a chat row, ours or foreign.

    Raises:
        RowError: it is not a chat row.
    """
    if isinstance(beside := row.get(BESIDE), Mapping):
        tools = {"tools": row["tools"]} if "tools" in row else {}
        return record_from_json({**beside, "messages": row.get("messages"), **tools})
    messages, tools = tuple(chat_messages(row)), chat_tools(row)
    instruction = next((str(one["content"]) for one in reversed(messages) if one["role"] == "user"), "")
    reward = row.get("reward")
    opening = next(place for place, one in enumerate(messages) if written_by_model(one))
    if opening:
        instruction = str(messages[opening - 1]["content"])
    last = messages[-1]
    answered = written_by_model(last) and not last.get("tool_calls")
    return TrajectoryRecord(
        task=TaskRecord(instruction=instruction, domain=domain, key=digest([list(messages[:opening])])[:32]),
        messages=messages,
        tools=None if tools is None else tuple(tools),
        answer=str(last["content"]) if answered else None,
        status="answered" if answered else "unfinished",
        reward=float(reward) if isinstance(reward, (int, float)) and not isinstance(reward, bool) else None,
        provenance={"row": {key: value for key, value in row.items() if key not in ("messages", "traj", "tools")}},
    )


def to_sharegpt(record: TrajectoryRecord) -> dict[str, Any]:
    """A ShareGPT row: `conversations` of `from` and `value`; calls are JSON under `function_call`, results `observation`."""
    row = to_openai(record)
    tools = {"tools": json.dumps(row.pop("tools"), ensure_ascii=False)} if "tools" in row else {}
    return {**row, "conversations": [_sharegpt_turn(one) for one in row.pop("messages")], **tools}


def from_sharegpt(row: Mapping[str, Any], domain: str = "imported") -> TrajectoryRecord:
    """The record of a ShareGPT row, ours or foreign.

    Raises:
        RowError: it is not a ShareGPT row.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("`conversations` is not a list of objects")
    chat = {key: value for key, value in row.items() if key not in ("conversations", "tools", "system")}
    chat["messages"] = [_chat_message(turn, f"turn {number}") for number, turn in enumerate(turns, start=1)]
    if isinstance(row.get("system"), str) and row["system"]:
        chat["messages"].insert(0, {"role": "system", "content": row["system"]})
    if isinstance(tools := row.get("tools"), str) and tools:
        chat["tools"] = _json(tools, "`tools`")
    return from_openai(chat, domain)


def read_any(url: str) -> Iterator[TrajectoryRecord]:
    """The records of a Parquet file of ours, or of JSON Lines in our schema, OpenAI's chat form or ShareGPT's, row by row.

    Raises:
        UserError: exit code 3; the file is missing or empty, or has a bad row, which is named.
    """
    if url.endswith(".parquet"):
        yield from read_parquet(url)
        return
    empty = True
    for row, line in json_lines(url):
        if not line.strip():
            continue
        if empty and (kind := next((name for magic, name in NO_ROWS.items() if line.startswith(magic)), None)):
            raise UserError(
                f"{url} is {kind}", exit_code=ExitCode.SPEC, fix="trajectories are read from JSON Lines, or from *.parquet"
            )
        empty = False
        try:
            data = read_json(line, row)
            if data.get("schema") == SCHEMA and BESIDE not in data:
                yield record_from_json(data)
            else:
                yield (from_sharegpt if "conversations" in data else from_openai)(data)
        except RowError as error:
            raise bad_row(url, row, str(error)) from None
    if empty:
        raise UserError(f"{url} is empty", exit_code=ExitCode.SPEC, fix="a trajectory file has one JSON object per line")


def write_parquet(url: str, records: Iterable[TrajectoryRecord]) -> int:
    """Write records to a Parquet file at a path or fsspec URL: messages as a typed list, the rest as JSON; returns how many."""
    arrow, parquet = _arrow()
    text = arrow.string()
    function = arrow.struct([("name", text), ("arguments", text)])
    call = arrow.struct([("id", text), ("type", text), ("function", function)])
    fields = [(name, text) for name in ("role", "content", "reasoning_content", "name", "tool_call_id")]
    message = arrow.struct([*fields, ("tool_calls", arrow.list_(call))])
    columns = [("id", text), ("domain", text), ("status", text), ("reward", arrow.float64()), ("tools", text), ("record", text)]
    schema = arrow.schema([*columns, ("messages", arrow.list_(message))], metadata={"schema": SCHEMA})
    count, batch = 0, []
    with fsspec.open(url, "wb") as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for record in records:
            batch.append(_parquet_row(record))
            count += 1
            if len(batch) == PARQUET_BATCH:
                writer.write_table(arrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(arrow.Table.from_pylist(batch, schema))
    return count


def read_parquet(url: str) -> Iterator[TrajectoryRecord]:
    """The records of a Parquet file.

    Raises:
        UserError: exit code 3; it is not there, not one of ours, or of another schema.
    """
    arrow, parquet = _arrow()
    try:
        with fsspec.open(url, "rb") as stream, parquet.ParquetFile(stream) as file:
            if (file.schema_arrow.metadata or {}).get(b"schema") != SCHEMA.encode():
                raise UserError(f"{url} is not a Parquet file of {SCHEMA}", exit_code=ExitCode.SPEC)
            for batch in file.iter_batches(PARQUET_BATCH):
                for row in batch.to_pylist():
                    yield _from_parquet_row(row)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {url}", exit_code=ExitCode.SPEC) from error
    except (arrow.ArrowException, OSError, ImportError, ValueError, RowError) as error:
        raise UserError(f"{url} cannot be read: {error}", exit_code=ExitCode.SPEC) from error


def _sharegpt_turn(message: Message) -> dict[str, Any]:
    turn = {"from": SHAREGPT_ROLES[message["role"]], "value": message["content"]}
    if calls := message.get("tool_calls"):
        functions = [{"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])} for call in calls]
        turn = {"from": CALLS, "value": json.dumps(functions, ensure_ascii=False), "content": message["content"]}
        turn["tool_calls"] = calls  # ids, and arguments letter for letter
    return turn | {key: message[key] for key in ("reasoning_content", "name", "tool_call_id") if key in message}


def _chat_message(turn: Mapping[str, Any], where: str) -> Message:
    role = ROLES.get(str(turn.get("from")))
    if role is None:
        raise RowError(f"{where} is from {turn.get('from')!r}; ShareGPT knows {', '.join(ROLES)}")
    message: Message = {"role": role, "content": turn.get("value")}
    if turn.get("from") == CALLS:
        functions = _json(turn.get("value"), where)
        functions = functions if isinstance(functions, list) else [functions]
        message["content"] = turn.get("content")
        message["tool_calls"] = turn.get("tool_calls") or [{"type": "function", "function": one} for one in functions]
    return message | {key: turn[key] for key in ("reasoning_content", "name", "tool_call_id") if key in turn}


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(f"{where} is not JSON: {error}") from None


def _parquet_row(record: TrajectoryRecord) -> dict[str, Any]:
    row = record.as_json()
    messages: Sequence[Message] = row.pop("messages")
    tools = row.pop("tools", None)
    return {
        "id": record.id,
        "domain": record.task.domain,
        "status": record.status,
        "reward": record.reward,
        "tools": None if tools is None else json.dumps(tools, ensure_ascii=False, allow_nan=False),
        "record": json.dumps(row, ensure_ascii=False, allow_nan=False),
        "messages": messages,
    }


def _from_parquet_row(row: Mapping[str, Any]) -> TrajectoryRecord:
    messages = [_without_nulls(message) for message in row["messages"]]
    tools = {} if row["tools"] is None else {"tools": json.loads(row["tools"])}
    return record_from_json({**json.loads(row["record"]), "messages": messages, **tools})


def _without_nulls(message: Mapping[str, Any]) -> Message:
    """A message without the fields that its struct has and it has not; an empty content stays."""
    kept = {key: value for key, value in message.items() if value is not None or key == "content"}
    if calls := kept.get("tool_calls"):
        kept["tool_calls"] = [{key: value for key, value in call.items() if value is not None} for call in calls]
    return kept


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "Parquet files want the package `pyarrow`", exit_code=ExitCode.UNFIT, fix="pip install 'polymath[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet
