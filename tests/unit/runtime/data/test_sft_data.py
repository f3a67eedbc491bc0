"""Supervised batches: the weights, the order, and what is cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.runtime.data.sft_data import NOTHING_LEFT, TOO_LONG, SftData, SourceFile, read_documents
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, load_tokenizer_folder
from polymath.specs.diagnostics import UserError
from polymath.specs.model import TrajectorySource

BYTES = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:bytes"], "builtin:bytes")
REAL_DATA = Path(__file__).resolve().parents[4].parent / "shared" / "data"


def question_file(path: Path, rows: list[tuple[str, str]], **rest: Any) -> SourceFile:
    path.write_text("".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows))
    return SourceFile(url=str(path), source=TrajectorySource(path="-", format="question_answer"), **rest)


def some_data(folder: Path, count: int = 40, batch_sequences: int = 4) -> SftData:
    rows = [("q" * (1 + number % 17), f"answer {number}") for number in range(count)]
    documents, _ = read_documents([question_file(folder / "data.jsonl", rows)], BYTES, 128)
    return SftData(documents, 128, batch_sequences, seed=3)


def test_every_written_token_of_a_batch_weighs_the_same(tmp_path: Path) -> None:
    data = some_data(tmp_path)
    for step in (1, 2, 9):
        batch = data.batch(step)
        weights = batch.loss_weight_BL[batch.loss_weight_BL != 0]
        assert torch.isclose(weights.sum(), torch.tensor(1.0), atol=1e-6)
        assert (weights == weights[0]).all()
        assert ((batch.labels_BL >= 0) == (batch.loss_weight_BL > 0)).all()


def test_an_epoch_shows_every_document_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    data = some_data(tmp_path, batch_sequences=1)
    epochs: list[list[bytes]] = []
    for epoch in range(2):
        seen: list[bytes] = []
        for row in range(data.rows_per_epoch):
            batch = data.batch(1 + epoch * data.rows_per_epoch + row)
            for number in range(int(batch.documents_BL.max()) + 1):
                tokens = batch.tokens_BL[batch.documents_BL == number]
                if tokens.any():  # padding is all zeros here
                    seen.append(bytes(token for token in tokens.tolist() if token < 256))
        epochs.append(seen)
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(epochs[0]) == len(data.documents)
    assert epochs[0] != epochs[1]


def test_a_step_depends_on_nothing_but_its_number(tmp_path: Path) -> None:
    forwards, resumed = some_data(tmp_path, batch_sequences=3), some_data(tmp_path, batch_sequences=3)
    batches = {step: forwards.batch(step) for step in range(1, 12)}
    for step in (11, 2, 7):
        assert torch.equal(resumed.batch(step).tokens_BL, batches[step].tokens_BL)


def test_steps_of_epochs_are_rounded_up(tmp_path: Path) -> None:
    data = some_data(tmp_path, batch_sequences=4)
    assert data.steps_for(1.0) == -(-data.rows_per_epoch // 4)
    assert data.steps_for(2.0) == -(-2 * data.rows_per_epoch // 4)


def test_long_rows_are_cut_and_rows_cut_before_the_answer_are_left_out(tmp_path: Path) -> None:
    rows = [("q", "a" * 10), ("q", "a" * 200), ("q" * 200, "a")]
    documents, [report] = read_documents([question_file(tmp_path / "data.jsonl", rows)], BYTES, 64)
    assert [len(document.ids) for document in documents][1] == 65
    assert (report.rows, report.kept) == (3, 2)
    assert report.filtered == {NOTHING_LEFT: 1}
    assert report.truncated == {TOO_LONG: 1}
    assert report.written_tokens == sum(int(document.weight_T.sum()) for document in documents)
    assert report.summary().endswith(f"kept 2 of 3 rows, left out 1 ({NOTHING_LEFT}), cut 1 ({TOO_LONG})")


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row is left") as caught:
        read_documents([question_file(tmp_path / "data.jsonl", [("q" * 99, "a")])], BYTES, 32)
    assert caught.value.exit_code == 3


def test_a_file_that_is_not_the_locked_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has changed since") as caught:
        read_documents([question_file(tmp_path / "data.jsonl", [("q", "a")], sha256="0" * 64)], BYTES, 32)
    assert caught.value.exit_code == 4


def test_a_call_that_the_tokenizer_cannot_write_names_its_row(tmp_path: Path) -> None:
    words = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:tiny-words"], "builtin:tiny-words")
    function = {"name": "open", "arguments": json.dumps({"page": {"number": 1}})}
    row = {
        "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"data.jsonl, row 1: call of open has an object"):
        read_documents([SourceFile(url=str(tmp_path / "data.jsonl"), source=TrajectorySource(path="-"))], words, 32)


@pytest.mark.parametrize("tools", ['[{"name": 1e999}]', '[{"name": ' + "[" * 900 + "]" * 900 + "}]"])
def test_tools_that_cannot_be_rendered_name_their_row(tools: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": ' + tools + "}\n"
    )
    with pytest.raises(UserError, match="row 1: ") as caught:
        read_documents([SourceFile(url=str(path), source=TrajectorySource(path="-"))], BYTES, 32)
    assert caught.value.exit_code == 3


@pytest.mark.real_data
def test_real_airline_episodes_and_questions_become_batches() -> None:
    airline, questions = REAL_DATA / "tau_bench" / "gpt-4o-airline.jsonl", REAL_DATA / "gsm8k" / "train.jsonl"
    if not (airline.is_file() and questions.is_file()):
        pytest.skip(f"{REAL_DATA} is not here")
    files = [
        SourceFile(url=str(airline), source=TrajectorySource(path="-", minimum_reward=1.0)),
        SourceFile(url=str(questions), source=TrajectorySource(path="-", format="question_answer")),
    ]
    documents, [first, second] = read_documents(files, BYTES, 16384)
    assert (first.rows, first.kept) == (160, 66)
    assert second.rows == second.kept == sum(1 for _ in questions.open())
    data = SftData(documents, 16384, 2, seed=1)
    assert sum(len(document.ids) - 1 for document in documents) > 0.98 * data.rows_per_epoch * 16384
    assert (data.batch(1).loss_weight_BL > 0).any()
