"""The lock: what the data held, how long it is, what has drifted, and what stays unproved without it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.driver import compile_in_memory, compile_spec, lock_spec
from polymath.compiler.lengths import Quantiles, quantiles, row_lengths
from polymath.runtime.cli import main
from polymath.specs.diagnostics import SpecInvalid, UserError

TEMPLATE = (Path(__file__).parents[3] / "specs" / "init.yaml").read_text()
WITH_FILE = TEMPLATE.replace("{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}", "{path: data.jsonl}", 1)
WITH_FILE = WITH_FILE.replace("builtin:tiny-words", "builtin:bytes").replace("context_tokens: 128}", "context_tokens: 4096}")


def row(turns: int = 1, text: str = "hello") -> str:
    messages = [{"role": "user", "content": "hi"}]
    for _ in range(turns):
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "go on"}]
    return json.dumps({"messages": messages[:-1], "tools": []}) + "\n"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text(row(1) * 9 + row(3))
    (tmp_path / "my.yaml").write_text(WITH_FILE)
    return tmp_path / "my.yaml"


def read(spec: Path) -> dict[str, Any]:
    return json.loads(spec.with_name("my.lock.json").read_text())


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles(range(1, 101)) == Quantiles(p05=6, p50=51, p95=96, p99=100, max=100)
    assert quantiles([7]) == Quantiles(p05=7, p50=7, p95=7, p99=7, max=7)


def test_a_row_is_measured_without_a_tokenizer() -> None:
    assert row_lengths(json.loads(row(3))) == {"characters": 2 + 3 * 5 + 2 * 5, "turns": 3}
    assert row_lengths({"question": "ab", "answer": "c"}) == {"characters": 3, "turns": 1}
    assert row_lengths({"messages": [1, {"role": "assistant", "content": None}]}) == {"characters": 0, "turns": 1}


def test_a_lock_holds_hashes_rows_lengths_versions_and_the_seed(spec: Path) -> None:
    lock_spec(spec)
    lock = read(spec)
    source = lock["sources"]["source.search.0"]
    assert source["rows"] == 10 and source["lengths"]["turns"] == {"p05": 1, "p50": 1, "p95": 3, "p99": 3, "max": 3}
    assert "tokens" not in source["lengths"] and source["tokenizer"] is None
    assert lock["seed"] == 7 and "polymath" in lock["versions"]
    assert set(lock["blocks"]) > {"model", "domains", "student"}


def test_the_verb_counts_tokens_and_a_later_lock_keeps_them(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", str(spec)]) == 0
    assert "response tokens: half at most" in capsys.readouterr().out
    counted = read(spec)["sources"]["source.search.0"]
    assert counted["tokenizer"] == "builtin:bytes"
    assert counted["lengths"]["response_tokens"]["max"] == len("hello") + 1  # and the end of the turn
    lock_spec(spec)
    assert read(spec)["sources"]["source.search.0"] == counted
    (spec.parent / "data.jsonl").write_text(row(2))
    lock_spec(spec)
    assert "tokens" not in read(spec)["sources"]["source.search.0"]["lengths"], "another file's lengths are not kept"
    assert main(["lock", str(spec), "--no-tokens"]) == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("limits: {turns: 8,", "limits: {turns: 1,"), "turns"),
        (("response_tokens: 24, context_tokens: 112}", "response_tokens: 24, context_tokens: 40}"), "context_tokens"),
        (("response_tokens: 24,", "response_tokens: 3,"), "response_tokens"),
        (
            ("    sequence_tokens: 128\n    learning_rate: 4e-3", "    sequence_tokens: 40\n    learning_rate: 4e-3"),
            "sequence_tokens",
        ),
    ],
)
def test_a_limit_that_cuts_off_most_rows_is_refused_by_the_lock_and_with_it(
    spec: Path, change: tuple[str, str], field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (spec.parent / "data.jsonl").write_text(row(2, "hello there") * 3)
    assert main(["lock", str(spec)]) == 0
    assert change[0] in WITH_FILE
    spec.write_text(WITH_FILE.replace(*change, 1))
    with pytest.raises(SpecInvalid) as caught:
        compile_in_memory(spec)
    (found,) = caught.value.diagnostics
    assert (found.code, f"{field}: " in spec.read_text().splitlines()[found.span.line - 1]) == ("E0321", True)
    before = read(spec)
    assert main(["lock", str(spec)]) == 3
    assert read(spec) == before, "a lock of data that cannot be used is not written"


def test_what_only_a_lock_can_prove_is_said(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(spec), "-o", str(tmp_path / "plan")]) == 0
    said = capsys.readouterr().out
    assert said.count("not proved: ") == 2 and f"polymath lock {spec}" in said
    lock_spec(spec)
    assert compile_in_memory(spec).unproved == ("that the rows of data.jsonl fit `sequence_tokens` and `limits`",)
    assert main(["lock", str(spec)]) == 0
    assert not compile_in_memory(spec).unproved


def test_a_frozen_compile_wants_a_lock_and_takes_what_was_locked(spec: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no lock") as caught:
        compile_spec(spec, tmp_path / "plan", frozen=True)
    assert caught.value.exit_code == 4
    lock_spec(spec)
    assert compile_spec(spec, tmp_path / "plan", frozen=True)
    assert main(["compile", str(spec), "-o", str(tmp_path / "plan"), "--frozen"]) == 0


@pytest.mark.parametrize(
    ("drift", "named"),
    [
        (lambda spec, lock: (spec.parent / "data.jsonl").write_text(row(2)), "data.jsonl had sha256"),
        (lambda spec, lock: spec.write_text(WITH_FILE.replace("seed: 7", "seed: 8")), "seed was 7 and is 8"),
        (lambda spec, lock: spec.write_text(WITH_FILE.replace("steps: 200", "steps: 201")), "something else in `student`"),
        (lambda spec, lock: spec.write_text(TEMPLATE), "data.jsonl is no longer used"),
        (lambda spec, lock: lock["versions"].update(torch="1.0"), "torch was 1.0 and is"),
        (lambda spec, lock: lock["versions"].update(numpy_of_old="1"), "numpy_of_old was 1 and is not installed"),
        (lambda spec, lock: lock["sources"]["source.search.0"].update(url="old.jsonl"), "was old.jsonl and is data.jsonl"),
    ],
)
def test_every_drift_is_refused_by_name(spec: Path, drift: Any, named: str, tmp_path: Path) -> None:
    lock_spec(spec)
    lock = read(spec)
    drift(spec, lock)
    spec.with_name("my.lock.json").write_text(json.dumps(lock))
    with pytest.raises(UserError) as caught:
        compile_spec(spec, tmp_path / "plan", frozen=True)
    assert caught.value.exit_code == 4 and named in caught.value.message
    assert not (tmp_path / "plan").exists()


def test_an_override_is_drift_and_a_comment_is_not(spec: Path, tmp_path: Path) -> None:
    lock_spec(spec)
    spec.write_text("# a comment\n" + WITH_FILE)
    compile_spec(spec, tmp_path / "plan", frozen=True)
    with pytest.raises(UserError, match="student"):
        compile_spec(spec, tmp_path / "plan", ["student.sft.steps=3"], frozen=True)


def test_the_weights_and_the_tokenizer_are_locked_by_content(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "my.yaml").write_text(TEMPLATE.replace("builtin:tiny-words", "tokenizer"))
    lock, _ = lock_spec(tmp_path / "my.yaml")
    before: Mapping[str, Any] = lock.sources
    assert before["model.tokenizer"].bytes == 2
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match="tokenizer had sha256"):
        compile_in_memory(tmp_path / "my.yaml", frozen=True)


def test_an_older_lock_without_lengths_is_still_read(spec: Path) -> None:
    lock_spec(spec)
    lock = read(spec)
    for name in ("blocks", "seed"):
        del lock[name]
    for name in ("lengths", "tokenizer"):
        del lock["sources"]["source.search.0"][name]
    spec.with_name("my.lock.json").write_text(json.dumps(lock))
    assert compile_in_memory(spec, frozen=True).plan is not None
