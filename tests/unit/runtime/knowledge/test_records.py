"""One schema for trajectories: what is written comes back, other forms lose nothing, and SFT trains on what the model wrote."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polymath.runtime.cli import main
from polymath.runtime.data.sft_data import SourceFile, read_documents
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.knowledge.conversions import (
    from_openai,
    from_sharegpt,
    read_parquet,
    to_openai,
    to_sharegpt,
    write_parquet,
)
from polymath.runtime.knowledge.records import StepRecord, TaskRecord, TrajectoryRecord, read_records, write_records
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.model import Model, TrajectorySource

AIRLINE = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "tau_bench" / "gpt-4o-airline.jsonl"
TOOLS = ({"type": "function", "function": {"name": "find", "description": "", "parameters": {"type": "object"}}},)


def call(name: str, identity: str | None, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"type": "function", "function": function} | ({"id": identity} if identity else {})


def episode(**changed: Any) -> TrajectoryRecord:
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "", "reasoning_content": "Two places.", "tool_calls": [call("find", "a", z=1, a="é")] * 2},
        {"role": "tool", "content": "here", "tool_call_id": "a"},
        {"role": "tool", "content": "", "tool_call_id": "b", "name": "find"},
        {"role": "assistant", "content": None, "tool_calls": [call("find", None)]},
        {"role": "tool", "content": "there"},
        {"role": "user", "content": "Notes: here, there."},
        {"role": "assistant", "content": "there"},
    )
    steps = (
        StepRecord(message=2, call=0, observation=3, verdict=1.0, evidence=("n1",)),
        StepRecord(message=2, call=1, observation=4, verdict=0.0, readable=False),
        StepRecord(message=5, call=0, observation=6),
        StepRecord(message=8),
    )
    task = TaskRecord(
        instruction="Where is it?",
        domain="search",
        key="k",
        target="there",
        evidence=("n1",),
        verifiers=("outcome",),
        payload={"x": 1},
    )
    record = TrajectoryRecord(
        task=task, messages=messages, tools=TOOLS, steps=steps, restarts=(7,), answer="there", reward=1.0, provenance={"seed": 3}
    )
    return replace(record, **changed)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    records = [episode(), episode(tools=None, restarts=(), reward=None, answer=None, status="turns")]
    url = str(tmp_path / "records.jsonl")
    assert write_records(url, records) == 2
    assert list(read_records(url)) == records


@pytest.mark.parametrize(("there", "back"), [(to_openai, from_openai), (to_sharegpt, from_sharegpt)], ids=["openai", "sharegpt"])
def test_other_forms_lose_nothing(there: Any, back: Any) -> None:
    for record in (episode(), episode(tools=None, restarts=()), episode(tools=())):
        row = json.loads(json.dumps(there(record)))
        assert back(row) == record
    roles = [turn["from"] for turn in to_sharegpt(episode())["conversations"]]
    assert roles == [
        "system",
        "human",
        "function_call",
        "observation",
        "observation",
        "function_call",
        "observation",
        "human",
        "gpt",
    ]


def test_parquet_loses_nothing(tmp_path: Path) -> None:
    records = [episode(), episode(tools=None, restarts=()), episode(tools=())]
    url = str(tmp_path / "records.parquet")
    assert write_parquet(url, records) == 3
    assert list(read_parquet(url)) == records


def test_the_command_line_takes_a_set_through_every_form_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [episode(), episode(tools=None, restarts=()), episode(tools=())]
    last = tmp_path / "mine.jsonl"
    write_records(str(last), records)
    for form in ("openai", "parquet", "sharegpt", "records"):
        assert main(["trajectories", "convert", str(last), "--to", form, "--json"]) == ExitCode.OK
        last = Path(json.loads(capsys.readouterr().out)["output"])
    assert last.name == "mine.openai.sharegpt.records.jsonl" and list(read_records(str(last))) == records


def test_a_conversion_is_whole_or_not_there_and_never_overwrites_what_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(episode().line() + '{"messages": 3}\n')
    assert main(["trajectories", "convert", str(path), "--to", "parquet"]) == ExitCode.SPEC
    assert "mine.jsonl, row 2: " in capsys.readouterr().err
    assert main(["trajectories", "convert", str(path), "--to", "records", "-o", str(path)]) == ExitCode.USAGE
    assert "would overwrite what is read" in capsys.readouterr().err
    assert main(["trajectories", "convert", str(tmp_path / "none.parquet"), "--to", "records"]) == ExitCode.SPEC
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert main(["trajectories", "convert", str(tmp_path / "broken.parquet"), "--to", "records"]) == ExitCode.SPEC
    assert "broken.parquet cannot be read" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["broken.parquet", "mine.jsonl"]


def test_a_flag_of_another_action_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trajectories", "check", "spec.yaml", "--limit", "3"])
    assert caught.value.code == ExitCode.USAGE and "unrecognized arguments: --limit 3" in capsys.readouterr().err


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda deeper: st.lists(deeper, max_size=3), max_leaves=5)
user = st.builds(lambda text: {"role": "user", "content": text}, texts)
answers = st.builds(lambda text: {"role": "assistant", "content": text}, texts.filter(bool))
calling = st.builds(
    lambda name, arguments, content: {"role": "assistant", "content": content, "tool_calls": [call(name, "i", **arguments)]},
    texts.filter(bool),
    st.dictionaries(texts, values, max_size=3).filter(lambda one: not {"name", "identity"} & set(one)),
    st.none() | texts,
)
results = st.builds(lambda text: {"role": "tool", "content": text, "tool_call_id": "i"}, texts)


@given(st.lists(user, min_size=1, max_size=2), st.lists(answers | calling | results | user, max_size=6), answers, values)
def test_a_foreign_chat_row_comes_back_as_it_was_whatever_stands_in_it(first: Any, middle: Any, last: Any, other: Any) -> None:
    row = {"messages": [*first, *middle, last], "source": other}
    record = from_openai(row)
    assert to_openai(record) == row
    assert from_sharegpt(to_sharegpt(record)) == record


def test_real_rows_of_other_tools_come_back_as_they_were() -> None:
    if not AIRLINE.exists():
        pytest.skip("the real trajectories are not on this machine")
    for line in AIRLINE.read_text(encoding="utf-8").splitlines()[:50]:
        row = json.loads(line)
        record = from_openai(row)
        assert from_openai(to_openai(record)) == from_sharegpt(to_sharegpt(record)) == record
        assert [one["role"] for one in record.messages] == [one["role"] for one in row.get("messages", row.get("traj"))]


def test_a_row_of_another_version_or_an_edited_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(episode().line().replace("trajectory.v1", "trajectory.v9"))
    with pytest.raises(UserError, match=r"row 1: `schema` is 'polymath.trajectory.v9'; this version reads polymath.trajectory.v1"):
        list(read_records(str(path)))
    with pytest.raises(UserError, match="this version reads"):
        read_documents([SourceFile(url=str(path), source=TrajectorySource(path="-"))], bytes_tokenizer(), 4096)
    path.write_text(episode().line().replace("there", "elsewhere"))
    with pytest.raises(UserError, match="the row was edited"):
        list(read_records(str(path)))
    for field in ("restarts", "steps", "task"):
        row = episode().as_json()
        path.write_text(json.dumps({**row, field: [99]}) + "\n")
        with pytest.raises(UserError, match="row 1"):
            list(read_records(str(path)))


def bytes_tokenizer() -> Any:
    return load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes"))


def test_sft_trains_once_on_each_message_of_the_model_in_the_context_that_it_was_written_in(tmp_path: Path) -> None:
    url = str(tmp_path / "records.jsonl")
    write_records(url, [episode()])
    tokenizer = bytes_tokenizer()
    documents, reports = read_documents([SourceFile(url=url, source=TrajectorySource(path="-"))], tokenizer, 4096)
    assert len(documents) == 2 and reports[0].rows == reports[0].kept == 2
    first, second = (tokenizer.decode(list(one.ids)) for one in documents)
    assert "Where is it?" in first and "Where is it?" in second and "Notes" not in first and "here, there" in second
    written = "".join(
        tokenizer.decode([token for token, mine in zip(one.ids, one.written, strict=True) if mine]) for one in documents
    )
    assert written.count("find") == 3 and written.count("there") == 1 and "Notes" not in written
