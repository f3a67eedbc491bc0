"""The strict YAML reader: what it refuses, and that it knows where everything stands."""

import time
from pathlib import Path

import pytest
import yaml
from polymath.specs import yaml as reader
from polymath.specs.diagnostics import UserError
from polymath.specs.yaml import MAX_BYTES, read_file, read_text, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("3", 3),
        ("0x10", 16),
        ("0o17", 15),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("1_000", "1_000"),
        ("9" * 5000, "9" * 5000),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_follow_the_core_rules_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_are_always_text() -> None:
    assert read_text("a: '1'\nb: \"true\"\n", "x").data == {"a": "1", "b": "true"}


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\nb: 2\na: 3\n", "E0102", 3, 1),
        ("a: &x 1\n", "E0103", 1, 4),
        ("a: 1\nb: *x\n", "E0103", 2, 4),
        ("a: !!python/object/apply:os.system ['x']\n", "E0104", 1, 4),
        ("a: !function f.g\n", "E0104", 1, 4),
        ("1: 2\n", "E0105", 1, 1),
        ("yes: 2\ntrue: 1\n", "E0105", 2, 1),
        ("? [1]\n: 2\n", "E0105", 1, 3),
        ("a: 1\n---\nb: 2\n", "E0106", 2, 1),
        ("a: [1, 2\nb: 3\n", "E0101", 1, 4),
        ("a:\n\t- 1\n", "E0101", 2, 1),
        ("a: ok\nb: \u202egpj\n", "E0109", 2, 4),
        ("a: ok\nb: \x07\n", "E0109", 2, 4),
    ],
)
def test_what_is_not_in_the_language_is_refused_where_it_stands(text: str, code: str, line: int, column: int) -> None:
    found = read_text(text, "my.yaml").diagnostics
    assert [(one.code, one.span.line, one.span.column) for one in found][:1] == [(code, line, column)]


def test_a_duplicate_names_the_first_line_and_keeps_the_first_value() -> None:
    document = read_text("a: 1\na: 2\n", "my.yaml")
    assert "line 1" in document.diagnostics[0].detail
    assert document.data == {"a": 1}


def test_several_mistakes_are_found_at_once() -> None:
    assert [one.code for one in read_text("a: 1\na: 2\nb: !x 3\n", "my.yaml").diagnostics] == ["E0102", "E0104"]


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: 1\nb: \xff\n")
    (found,) = read_file(tmp_path / "x.yaml", "x.yaml").diagnostics
    assert (found.code, found.span.line) == ("E0109", 2)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: " + b"x" * (2 * MAX_BYTES))
    assert [one.code for one in read_file(tmp_path / "x.yaml", "x.yaml").diagnostics] == ["E0108"]


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_file(tmp_path / "none.yaml", "none.yaml")
    assert caught.value.exit_code == 64


@pytest.mark.parametrize("hostile", ["[" * 100_000, "{a: " * 50_000, "a: [" * 40 + "]" * 40])
def test_deep_nesting_is_refused_without_recursion(hostile: str) -> None:
    started = time.perf_counter()
    assert [one.code for one in read_text(hostile, "x").diagnostics] == ["E0107"]
    assert time.perf_counter() - started < 5  # it would not end at all if it were expanded


def test_a_bom_and_windows_line_ends_do_not_move_columns(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nbb: cc\r\n")
    document = read_file(tmp_path / "x.yaml", "x.yaml")
    assert document.data == {"a": 1, "bb": "cc"}
    span = document.spans.at(("bb",))
    assert (span.line, span.column, span.end_column) == (2, 5, 7)


def test_keys_and_values_have_their_own_places() -> None:
    spans = read_text("a:\n  - {bc: 12}\n", "x").spans
    assert (spans.at(("a", 0, "bc")).column, spans.at(("a", 0, "bc"), key=True).column) == (10, 6)
    assert spans.at(("a", 0, "missing")).line == 2


def test_the_python_parser_marks_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(reader.__file__).parent / "init.yaml").read_text()
    fast = read_text(text, "x")
    monkeypatch.setattr(reader, "_Loader", yaml.SafeLoader)
    slow = read_text(text, "x")
    assert slow.data == fast.data
    assert {path: (span.line, span.column) for path, span in slow.spans.values.items()} == {
        path: (span.line, span.column) for path, span in fast.spans.values.items()
    }
