"""`fmt`: canonical order; nothing that the spec says changes, and no comment is lost."""

import random
import re
from pathlib import Path

import pytest
from polymath.runtime.cli import main
from polymath.specs.format import format_spec
from polymath.specs.yaml import read_text
from shipped import RECIPES

WORD = re.compile(r"[^\s,{}\[\]]+")
ROOT = Path(__file__).parents[3]
SPECS = [ROOT / "specs" / "init.yaml", *RECIPES]


@pytest.mark.parametrize("path", SPECS, ids=[path.stem for path in SPECS])
def test_what_we_ship_is_in_order(path: Path) -> None:
    text = path.read_text()
    assert format_spec(text) == text, f"polymath fmt {path.relative_to(ROOT)}"


SHUFFLED = """# The head stays.

seed: 7   # of everything
# the name
name: a
polymath: 1

student:
  distill:
    sequence_tokens: 2   # long
    steps: 1

    # how it starts
    from: sft
  # stage one
  sft:
    {sequence_tokens: 8, steps: 3}   # in braces
model:
    # which
    family: qwen3_moe
"""
IN_ORDER = """# The head stays.

polymath: 1
# the name
name: a
seed: 7   # of everything
model:
    # which
    family: qwen3_moe

student:
  # stage one
  sft:
    {steps: 3, sequence_tokens: 8}   # in braces
  distill:
    # how it starts
    from: sft
    steps: 1
    sequence_tokens: 2   # long
"""


def test_fields_are_ordered_at_every_depth_and_comments_follow() -> None:
    assert format_spec(SHUFFLED) == IN_ORDER


def test_items_of_lists_keep_their_order_and_their_dashes() -> None:
    text = """teachers:
  b:
    phases:
      # first
      - steps: 2
        # kind
        method: grpo
        domains: [z, a]
      -
        clip: [0.2, 0.28]
        method: grpo
      - {steps: 3, method: sft, domains: [x]}
    from: base
  a: {phases: [{steps: 1, method: sft}], from: base}
"""
    assert (
        format_spec(text)
        == """teachers:
  b:
    from: base
    phases:
      # first
        # kind
      - method: grpo
        domains: [z, a]
        steps: 2
      -
        method: grpo
        clip: [0.2, 0.28]
      - {method: sft, domains: [x], steps: 3}
  a: {from: base, phases: [{method: sft, steps: 1}]}
"""
    )


def test_what_is_not_known_comes_last_and_keeps_its_order() -> None:
    assert format_spec("zeta: 1\nalpha: 2\nseed: 1\npolymath: 1\n") == "polymath: 1\nseed: 1\nzeta: 1\nalpha: 2\n"


def test_line_ends_and_trailing_spaces_are_put_right() -> None:
    assert format_spec("polymath: 1  \r\nseed: 2\r\n\r\n") == "polymath: 1\nseed: 2\n"
    literal = "seed: 1\nname: |\n  a  \n  # no comment\npolymath: 1\n"
    assert format_spec(literal) == "polymath: 1\nname: |\n  a  \n  # no comment\nseed: 1\n"


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("indicator", ["|", "|+", ">-", ">+"])
def test_line_breaks_at_the_end_of_a_literal_are_kept(indicator: str, end: str) -> None:
    text = f"seed: 1\nname: {indicator}\n  # no comment{end}"
    assert read_text(format_spec(text), "").data == read_text(text, "").data


@pytest.mark.parametrize("text", ["# nothing\n", "[1, 2]\n", "just: {a: [], b: {}}\n", "a: 'it''s # no comment'\nseed: 1\n"])
def test_odd_files_survive(text: str) -> None:
    assert read_text(format_spec(text), "").data == read_text(text, "").data


@pytest.mark.parametrize("path", SPECS, ids=[path.stem for path in SPECS])
def test_a_shuffled_spec_comes_back_in_order_and_a_second_time_nothing_moves(path: Path) -> None:
    chance = random.Random(0)
    text = path.read_text()
    blocks = [block for block in text.split("\n\n") if block]
    for _ in range(20):
        chance.shuffle(blocks)
        shuffled = "\n\n".join(blocks) + "\n"
        if read_text(shuffled, "").diagnostics:
            continue
        once = format_spec(shuffled)
        assert read_text(once, "").data == read_text(text, "").data
        assert format_spec(once) == once
        assert sorted(WORD.findall(once)) == sorted(WORD.findall(text)), "every word is still there"


def test_the_verb_checks_and_writes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\npolymath: 1\n")
    path.chmod(0o600)
    assert main(["fmt", str(path), "--check"]) == 2
    assert path.read_text() == "seed: 1\npolymath: 1\n"
    assert main(["fmt", str(path)]) == 0
    assert path.read_text() == "polymath: 1\nseed: 1\n" and path.stat().st_mode & 0o777 == 0o600
    assert main(["fmt", str(path), "--check", "--json"]) == 0
    path.write_text("a: [\n")
    assert main(["fmt", str(path)]) == 3
    assert path.read_text() == "a: [\n"
    assert "E0101" in capsys.readouterr().err
