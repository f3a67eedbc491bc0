"""Reading sources: what goes in as it is, and what each bad row is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.data.trajectories import SCHEMA, Conversation, SourceReport, read_source
from polymath.specs.diagnostics import UserError
from polymath.specs.model import TrajectorySource

REAL_DATA = Path(__file__).resolve().parents[4].parent / "shared" / "data"
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def read(path: Path | str, **source: Any) -> tuple[list[Conversation], SourceReport]:
    report = SourceReport(url=str(path))
    return list(read_source(str(path), TrajectorySource(path="-", **source), report)), report


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def chat(*messages: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"messages": list(messages), **rest}


USER = {"role": "user", "content": "a"}


def calls(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ('{"messages": [', "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ("null", "a JSON null, not an object"),
        ("[" * 100_000, "not JSON"),
        ('{"messages": NaN}', "not JSON: NaN"),
        ({}, "neither `messages` nor `traj`"),
        ({"question": "a", "answer": "b"}, "use `format: question_answer`"),
        (chat(), "not a list with anything in it"),
        ({"messages": "hello"}, "not a list"),
        ({"messages": ["hello"]}, "message 1 is a JSON string"),
        (chat({"role": "robot", "content": "a"}), "message 1 has the role 'robot'; roles are system, user, assistant, tool"),
        (chat({"role": ["user"], "content": "a"}), "has the role"),
        (chat({"role": "user"}), "message 1 (user) has no `content`"),
        (chat({"role": "user", "content": 3}), "a JSON number, not a text"),
        (chat({"role": "user", "content": [{"type": "image_url"}]}), "a part of type 'image_url'"),
        (chat(USER, {"role": "assistant", "content": None}), "message 2 (assistant) has no `content` and no `tool_calls`"),
        (chat(USER, {"role": "assistant", "content": ""}), "message 2 (assistant) is empty"),
        (chat(USER), "the assistant wrote nothing"),
        (chat({"role": "assistant", "content": "b"}), "message 1 is the assistant's"),
        (chat({**USER, "tool_calls": [{}]}), "only the assistant calls tools"),
        (chat(USER, {"role": "assistant", "content": None, "tool_calls": "f()"}), "not a list"),
        (chat(USER, calls(arguments="{}")), "message 2, tool call 1 has no `function` with a `name`"),
        (chat(USER, calls(name="f")), "tool call 1 (f) has no `arguments`"),
        (chat(USER, calls(name="f", arguments="{'x': 1}")), "tool call 1 (f) has `arguments` that are not a JSON object"),
        (chat(USER, calls(name="f", arguments="[1]")), "not a JSON object"),
        (chat(USER, calls(name="f", arguments='{"x": 1e999}')), "not a JSON object"),
        (chat(USER, calls(name="f", arguments='{"x": "\\ud800"}')), "not a JSON object"),
        (chat(USER, calls(name="f", arguments='{"x": ' + "[" * 9999)), "not a JSON object"),
        ({**GOOD, "reward": "high"}, '`reward` is "high", not a number'),
        ({**GOOD, "reward": 10**400}, "`reward` is 1000"),
        ({**GOOD, "schema": SCHEMA, "restarts": 5}, "`restarts` is not a list of whole numbers"),
        ({**GOOD, "schema": SCHEMA, "restarts": [1.5]}, "`restarts` is not a list of whole numbers"),
        ({**GOOD, "tools": {"name": "f"}}, "`tools` is not a list"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "b"}]}', "surrogate"),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(row: Any, what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, row)
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith(f"{path}, row 2: ")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("row", "what"),
    [({"question": "a"}, "`answer` is missing"), ({"question": " ", "answer": "b"}, "`question` is not")],
)
def test_a_bad_question_or_answer_is_named(row: dict[str, str], what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=what):
        read(write(tmp_path / "data.jsonl", row), format="question_answer")


def test_bytes_that_are_not_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"messages": "\xff"}\n')
    with pytest.raises(UserError, match=r"row 2: not UTF-8 \(byte 14\)"):
        read(path)


def test_a_file_that_was_cut_off_is_not_read_short(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, GOOD)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="row 2: not JSON"):
        read(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="is empty") as caught:
        read(path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("url", ["{folder}/none.jsonl", "{folder}", "nosuch://bucket/data.jsonl"])
def test_a_file_that_cannot_be_read_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file|cannot be read") as caught:
        read(url.format(folder=tmp_path))
    assert caught.value.exit_code == 3


def test_rows_below_the_reward_are_filtered_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", {**GOOD, "reward": 0.5}, "", {**GOOD, "reward": 1}, GOOD, {**GOOD, "reward": 0})
    conversations, report = read(path, minimum_reward=1.0)
    assert [conversation.row for conversation in conversations] == [3, 4]
    assert report.rows == 4
    assert report.filtered == {"reward below 1": 2}


def test_a_file_of_another_storage_and_forms_is_read(tmp_path: Path) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    acts = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    row = {"traj": [parts, acts, {"role": "tool", "content": "", "tool_call_id": "1"}], "tools": [{"name": "f"}]}
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    [conversation], report = read(path.as_uri())
    assert conversation.messages[0]["content"] == "ab"
    assert json.loads(conversation.messages[1]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert conversation.messages[2] == {"role": "tool", "content": "", "tool_call_id": "1"}
    assert conversation.tools == [{"name": "f"}]
    assert report.rows == 1


@pytest.mark.real_data
def test_real_airline_episodes_go_in_as_they_are() -> None:
    path = REAL_DATA / "tau_bench" / "gpt-4o-airline.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    conversations, report = read(path, minimum_reward=1.0)
    assert (report.rows, len(conversations), report.filtered) == (160, 66, {"reward below 1": 94})
    theirs = [json.loads(line)["traj"] for line in path.read_text().splitlines()]
    for conversation in conversations:
        for message, original in zip(conversation.messages, theirs[conversation.row - 1], strict=True):
            assert message["content"] == original["content"]
            assert len(message.get("tool_calls", [])) == len(original.get("tool_calls", []))
