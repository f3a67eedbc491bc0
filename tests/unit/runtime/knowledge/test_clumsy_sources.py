"""What a clumsy user gives the verbs of graphs and trajectories ends in one message that says what to do, never in a traceback."""

import bz2
import gzip
import json
from pathlib import Path

import pytest
from polymath.runtime.cli import main
from polymath.runtime.knowledge.graph import GraphStore

DUMP = "<mediawiki><page><title>A</title><ns>0</ns><revision><text>Says that [[B]].</text></revision></page></mediawiki>"
PROGRAM = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "reward": 1.0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with whole and damaged sources, which commands run in."""
    files = {
        "wiki.xml": DUMP.encode(),
        "cut.xml": DUMP.encode()[:60],
        "cut.xml.bz2": bz2.compress(DUMP.encode())[:60],
        "cut.xml.gz": gzip.compress(DUMP.encode())[:60],
        "latin.xml": DUMP.replace("Says", "S\xe4gt").encode("latin-1"),
        "empty.xml": b"",
        "page.html": b"<html><body>no wiki</body></html>",
        "latin.jsonl": '{"title": "\xe4", "text": "b"}\n'.encode("latin-1"),
        "half.jsonl": b'{"title": "a"\n',
        "list.jsonl": b"[1]\n",
        "tools.json": json.dumps([PROGRAM]).encode(),
        "nameless.json": b'[{"a": 1}]',
        "odd.json": json.dumps([PROGRAM, {"name": "g", "parameters": [1]}]).encode(),
        "odder.json": json.dumps([{"name": "g", "inputSchema": {"properties": [1]}}]).encode(),
        "oddest.json": json.dumps([{"name": "g", "parameters": {"properties": {"a": {}}, "required": 3}}]).encode(),
        "number.json": b"3",
        "rows.jsonl": (json.dumps(ROW) + "\n").encode(),
        "docs/a.md": b"a",
    }
    (tmp_path / "nothing").mkdir()
    (tmp_path / "docs").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("wiki", "wiki.xm", ("there is no file wiki.xm", "did you mean `wiki.xml`?")),
        ("wiki", "nothing", ("is a folder", "`wiki` takes")),
        ("wiki", "empty.xml", ("is empty", "`wiki` takes")),
        ("wiki", "cut.xml", ("ends too early", "checksum")),
        ("wiki", "cut.xml.bz2", ("ends too early", "checksum")),
        ("wiki", "cut.xml.gz", ("ends too early", "checksum")),
        ("wiki", "latin.xml", ("line 1", "UTF-8")),
        ("wiki", "page.html", ("holds no pages", "`wiki` takes")),
        ("wiki", "latin.jsonl", ("row 1", "UTF-8")),
        ("wiki", "half.jsonl", ("row 1", "not JSON")),
        ("wiki", "list.jsonl", ("row 1", "not an object")),
        ("wiki", "https://example.org/wiki.xml", ("is a URL", "`wiki` takes")),
        ("documents", "doc", ("there is no folder doc", "did you mean `docs`?")),
        ("documents", "wiki.xml", ("is a file", "`documents` takes")),
        ("documents", "nothing", ("holds no documents", ".md")),
        ("tools", "tool.json", ("there is no file", "did you mean `tools.json`?")),
        ("tools", "nameless.json", ("tool 1", "`name`")),
        ("tools", "odd.json", ("tool 2", "`parameters`")),
        ("tools", "odder.json", ("tool 1", "`inputSchema`")),
        ("tools", "oddest.json", ("tool 1", "`parameters.required`")),
        ("tools", "number.json", ("neither an object nor a list", "`tools` takes")),
        ("tools", "latin.xml", ("not UTF-8", "`tools` takes")),
        ("trajectories", "row.jsonl", ("there is no file row.jsonl", "did you mean `rows.jsonl`?")),
        ("trajectories", "docs", ("is a folder", "name a file in it")),
        ("trajectories", "cut.xml.bz2", ("packed", "JSON Lines")),
    ],
)
def test_a_source_that_cannot_be_imported_is_said_in_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str, source: str, words: tuple[str, str]
) -> None:
    assert main(["graph-import", kind, source, "new.sqlite"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 2 and "Errno" not in said
    assert all(word in said for word in (source, *words)), said
    assert not [*here.glob("*new.sqlite*")], "nothing is left of a graph that holds nothing"


def test_a_packed_dump_is_read_whatever_it_is_called(here: Path) -> None:
    (here / "dump").write_bytes(bz2.compress(DUMP.encode()))
    (here / "dump.xml").write_bytes(gzip.compress(DUMP.encode()))
    assert main(["graph-import", "wiki", "dump", "a.sqlite"]) == main(["graph-import", "wiki", "dump.xml", "b.sqlite"]) == 0


@pytest.mark.parametrize("graph", ["docs", "docs/a.md/new.sqlite", "/proc/no/new.sqlite", "wiki.xml"])
def test_a_place_where_no_graph_can_be_is_refused(here: Path, capsys: pytest.CaptureFixture[str], graph: str) -> None:
    assert main(["graph-import", "documents", "docs", graph]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: ") and graph in said and "\n  = name" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "a.md"], ("no node or state", "that is a name; its id is")),
        (["--steps", "x"], ("no node or state", "--find")),
        (["--from", "x", "--to", "y"], ("--from and --to", "one at a time")),
        (["--find", "a", "--kind", "task"], ("--find and --kind", "one at a time")),
        (["--edge", "transition"], ("--edge", "--from ID")),
        (["--depth", "2", "--find", "a"], ("--depth", "--from ID")),
        (["--find", "("], ("no word", "--find '")),
    ],
)
def test_a_question_that_makes_no_sense_is_not_answered_with_silence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, str]
) -> None:
    assert main(["graph-import", "documents", "docs", "a.sqlite"]) == 0
    capsys.readouterr()
    assert main(["graph-query", "a.sqlite", *arguments]) == 64
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_a_question_without_an_answer_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph-import", "documents", "docs", "a.sqlite"]) == 0
    capsys.readouterr()
    assert main(["graph-query", "a.sqlite", "--find", "unheard"]) == 0
    assert capsys.readouterr().err == "nothing found\n"
    assert main(["graph-query", "b.sqlite"]) == 3
    assert "did you mean `a.sqlite`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["view", "row.jsonl"], 3, ("there is no file row.jsonl", "did you mean `rows.jsonl`?")),
        (["view", "docs"], 64, ("without rollout batches", "name a file")),
        (["view", "docz"], 3, ("there is no file docz", "did you mean `docs`?")),
        (["view", "none.sqlite"], 3, ("holds no episode", "self-play")),
        (["view", "rows.jsonl", "-o", "docs"], 64, ("docs is a folder", "docs/trajectories.html")),
        (["view", "rows.jsonl", "-o", "wiki.xml/a.html"], 5, ("wiki.xml cannot be used", "look at the path")),
        (["view", "rows.jsonl", "--tokenizer", "builtin:words"], 64, ("builtin:words", "builtin:bytes")),
        (["clean", "none.sqlite"], 3, ("is a graph", "JSON Lines")),
        (["clean", "rows.jsonl", "-o", "docs"], 64, ("docs is a folder", "docs/rows.clean.jsonl")),
        (["clean", "rows.jsonl", "-o", "docs/../rows.jsonl"], 64, ("would overwrite", "-o")),
        (["card", "rows.jsonl", "-o", "docs"], 64, ("docs is a folder", "docs/rows.card.md")),
        (["card", "rows.jsonl", "--contamination", "tool.json"], 3, ("there is no file", "`tools.json`")),
        (["card", "rows.jsonl", "--contamination", "tools.json"], 64, ("no report of check", "check SPEC -o")),
        (["check", "a.yaml", "b.yaml"], 64, ("one spec", "each")),
    ],
)
def test_a_clumsy_word_about_trajectories_is_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: tuple[str, str]
) -> None:
    GraphStore.create(here / "none.sqlite").close()
    before = sorted(here.rglob("*"))
    assert main(["trajectories", *arguments]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and all(word in said for word in words), said
    assert sorted(here.rglob("*")) == before, "nothing half done is left"


def test_a_card_reads_the_report_of_a_comparison_by_the_same_words(here: Path) -> None:
    (here / "report.json").write_text(json.dumps({"threshold": None, "heldout_tasks": {"a": 3}, "sources": [], "clean": True}))
    assert main(["trajectories", "card", "rows.jsonl", "--contamination", "report.json"]) == 0
    assert (
        "0 rows hold one of" in (here / "rows.card.md").read_text() and "in the same words" in (here / "rows.card.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["constraints", "a.sqlite", "-o", "docs"], 64, ("docs is a folder", "docs/constraints.jsonl")),
        (
            ["constraints", "a.sqlite", "-o", "x.jsonl", "--set", "fewest=5", "--set", "most=2"],
            3,
            ("`fewest` is 5, and `most` is 2", "at most 2"),
        ),
        (["search_walks", "a.sqlite", "-o", "x.jsonl", "--set", "graph=b.sqlite"], 64, ("--set graph", "after the generator")),
        (
            ["tool_subgraphs", "a.sqlite", "-o", "x.jsonl", "--set", "documents=docs"],
            3,
            ("there is no file docs/", "relative paths"),
        ),
    ],
)
def test_self_play_that_cannot_begin_says_why(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: tuple[str, str]
) -> None:
    assert main(["self-play", *arguments]) == code
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


@pytest.mark.parametrize("flag", ["--accepted=0", "--attempts=-1", "--turns=x", "--slip-rate=7"])
def test_numbers_that_count_nothing_are_refused(here: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["self-play", "constraints", "a.sqlite", "-o", "x.jsonl", flag])
    assert ended.value.code == 64 and flag.partition("=")[0] in capsys.readouterr().err
