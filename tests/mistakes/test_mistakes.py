"""Seeded mistakes: each is caught and named on its own line, and nearly always with the right suggestion.

`<name>.yaml` is a spec of `valid/` with one or more mistakes in it, `<name>.expected` all that the command line says of it.
Comments in the spec tell what was seeded:

    # seeded: what is wrong with the next line (`# seeded in line N:` where no comment can stand above it)
    # suggests: words that the message of that line must hold; `none` where nothing sensible can be suggested
    # command: lock                 the verb that finds it, where not `compile`
    # exit: 4                       the exit code, where not 3

`pytest tests/mistakes --update-golden` renews what is expected; the comments are checked against it all the same.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from polymath.runtime.cli import main

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.yaml"))
FEWEST = 60
RIGHT_SUGGESTIONS = 0.9

_MARK = re.compile(rb"\s*# (seeded|suggests|command|exit)(?: in line (\d+))?: (.*)")
_HEADER = re.compile(r"^(?:(\S[^:\n]*):(\d+):\d+|(\S[^:\n]*)): error\[(E\d{4})\]: ", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """One mistake that was put into a file."""

    line: int
    suggestion: str | None


def seeds_and_options(path: Path) -> tuple[list[Seed], dict[str, str]]:
    """What the comments of a file say: its mistakes in the order of its lines, and how it is run."""
    rows = path.read_bytes().splitlines()
    lines: list[int] = []
    suggestions: list[str | None] = []
    options: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        found = _MARK.fullmatch(row)
        if not found:
            continue
        mark, line, text = found[1].decode(), found[2], found[3].decode()
        if mark == "seeded":
            following = next(i for i, one in enumerate(rows[number:], number + 1) if not _MARK.fullmatch(one))
            lines.append(int(line) if line else following)
        elif mark == "suggests":
            suggestions.append(None if text == "none" else text)
        else:
            options[mark] = text
    assert lines and len(lines) == len(suggestions), f"{path.name}: every `# seeded` has its `# suggests`"
    return [Seed(line=line, suggestion=text) for line, text in zip(lines, suggestions, strict=True)], options


def run(path: Path, verb: str, plan: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code and everything said. The working directory is the folder of the file, so that its path is short."""
    arguments = [verb, path.name, *(("-o", str(plan)) if verb == "compile" else ())]
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out + said.err


def messages(text: str) -> list[tuple[int, str]]:
    """The line and the text of every diagnostic."""
    starts = [*_HEADER.finditer(text)]
    ends = [*(one.start() for one in starts[1:]), len(text)]
    return [(int(one[2] or 0), text[one.start() : end]) for one, end in zip(starts, ends, strict=True)]


def is_right(seed: Seed, said: Sequence[tuple[int, str]]) -> bool:
    return seed.suggestion is not None and any(line == seed.line and seed.suggestion in text for line, text in said)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_seeded_mistake_is_caught_on_its_line_with_what_to_do(
    path: Path,
    golden: Callable[[Path, str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(FOLDER)
    seeds, options = seeds_and_options(path)
    code, text = run(path, options.get("command", "compile"), tmp_path / "plan", capsys)
    golden(path.with_suffix(".expected"), text)
    said = messages(text)
    assert code == int(options.get("exit", 3))
    assert {line for line, _ in said} == {seed.line for seed in seeds}, text
    assert all(seed.suggestion is None or is_right(seed, said) for seed in seeds), text
    assert not (tmp_path / "plan").exists()


def test_nine_suggestions_in_ten_are_right() -> None:
    seeds = [(seed, messages(path.with_suffix(".expected").read_text())) for path in FILES for seed in seeds_and_options(path)[0]]
    right = sum(is_right(seed, said) for seed, said in seeds)
    print(f"{len(FILES)} files, {len(seeds)} mistakes, {right} right suggestions")
    assert len(FILES) >= FEWEST
    assert right >= RIGHT_SUGGESTIONS * len(seeds)


def test_what_is_expected_belongs_to_a_file_and_a_mistake_is_what_makes_it_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.stem for path in FOLDER.glob("*.expected")} == {path.stem for path in FILES}
    monkeypatch.chdir(FOLDER / "valid")
    for path in sorted((FOLDER / "valid").glob("*.yaml")):
        assert run(path, "compile", tmp_path / path.stem, capsys)[0] == 0
