"""`explain`, and the page of every code: each with an example that really fails with that code."""

import json
from pathlib import Path

import pytest
from polymath.compiler.examples import EXAMPLES
from polymath.compiler.explain import code_page, explain
from polymath.runtime.cli import main
from polymath.specs.codes import CODES
from polymath.specs.diagnostics import UserError
from polymath.specs.tree import all_nodes

PAGES = Path(__file__).parents[3] / "docs" / "errors"
EVER = Path(__file__).parent / "codes.txt"  # every code there ever was, with its title


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_fresh_page_with_an_example_that_fails_with_it(code: str) -> None:
    assert code in EXAMPLES, "add an example to compiler/examples.py"
    page = code_page(code)  # runs the example
    assert f"error[{code}]: {CODES[code].title}" in page
    assert (PAGES / f"{code}.md").read_text(encoding="utf-8") == page, "python -m polymath.compiler.explain docs/errors/"


def test_codes_are_only_ever_added() -> None:
    ever = [line.split(" ", 1)[0] for line in EVER.read_text().splitlines()]
    assert set(ever) <= CODES.keys(), "a code was removed or renumbered"
    assert CODES.keys() <= set(ever), "add the new codes to tests/unit/compiler/codes.txt"
    assert {path.stem for path in PAGES.glob("E*.md")} == CODES.keys()


def test_a_code_keeps_its_meaning() -> None:
    titles = dict(line.split(" ", 1) for line in EVER.read_text().splitlines())
    assert titles == {code: entry.title for code, entry in CODES.items()}, "a new meaning is a new code"


def test_a_field_is_explained_with_all_that_is_declared() -> None:
    text = explain("student.distill.loss.support.top_k")
    for words in (
        "Tokens in the support of source `teacher`",
        "whole number",
        "unit      tokens",
        "not set",
        "at least 2",
        "numerics",
        "example   16",
    ):
        assert words in text
    assert "placement" in explain("placement.sft.trainer.expert")
    assert "SftPhase" in explain("teachers.a.phases[0].learning_rate") and "GrpoPhase" in explain("teachers.a.phases.learning_rate")
    assert "hops" in explain("domains.search.settings.hops")


@pytest.mark.parametrize("path", sorted({node.path for node in all_nodes()}))
def test_every_field_can_be_explained(path: str) -> None:
    assert path in explain(path)


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("E9999", "errors.md"),
        ("e0201x", "fields"),
        ("student.distill.top_k", "`student.distill.loss.support.top_k`"),
        ("sead", "`seed`"),
    ],
)
def test_what_is_not_there_gets_a_hint(topic: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        explain(topic)
    assert caught.value.exit_code == 64 and hint in (caught.value.fix or "")


def test_the_verb_prints_the_page_in_any_case_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "e0201"]) == 0
    page = capsys.readouterr().out
    assert page == code_page("E0201")
    assert main(["explain", "E0201", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == page
