"""The command line: its verbs, its exit codes, and what a user sees of a bug."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from polymath.compiler import driver
from polymath.runtime.cli import main
from polymath.runtime.verbs.completion import flags_by_verb
from polymath.specs.diagnostics import ExitCode

FLAGS = {  # every verb and its flags; `--json` and `--help` are every verb's
    "init": [],
    "validate": ["--set", "--routing"],
    "explain": [],
    "fmt": ["--check"],
    "lock": ["--set", "--no-tokens"],
    "compile": ["--set", "--output", "--frozen", "--show"],
    "estimate": ["--set", "--calibrate", "--brief"],
    "diff": [],
    "graph": ["--format"],
    "launch": ["--run-dir", "--port", "--dry-run"],
    "run": ["--set", "--frozen", "--run-dir", "--port"],
    "sweep": ["--jobs"],
    "status": [],
    "report": [],
    "trajectories": [
        *("--output", "--tokenizer", "--graph", "--limit", "--to", "--run", "--threshold", "--licence", "--contamination"),
    ],
    "graph-import": ["--licence"],
    "graph-query": ["--find", "--kind", "--name", "--from", "--to", "--edge", "--depth", "--steps", "--limit"],
    "self-play": [
        *("--output", "--accepted", "--set", "--seed", "--attempts", "--rounds", "--turns", "--context-tokens", "--slip-rate"),
        *("--proposer", "--solver", "--verifier", "--key-env", "--remote", "--most-tokens", "--most-money", "--prices"),
        "--per-minute",
    ],
    "doctor": [],
    "schema": ["--extending"],
    "completion": [],
}


def test_the_verbs_and_flags_are_frozen() -> None:
    flags = flags_by_verb()
    assert list(flags) == list(FLAGS)
    for verb, words in flags.items():
        assert sorted(words) == sorted(["--help", *FLAGS[verb], "--json"]), verb


def test_the_page_of_the_command_line_knows_every_verb_and_flag() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for verb, flags in FLAGS.items():
        section = page.split(f"\n## {verb}\n")[1].split("\n## ")[0]
        assert not [flag for flag in flags if flag not in section], verb
        assert "Exit codes:" in section, verb


def test_the_exit_codes_are_frozen() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "BUG": 1, "DIFF": 2, "SPEC": 3, "STALE": 4, "UNFIT": 5, "FAILED": 6, "INTERRUPTED": 7, "USAGE": 64
    }  # fmt: skip


SELF_PLAY = ["self-play", "search_walks", "graph.sqlite", "-o", "a.jsonl"]


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["fly"], ["compile"], ["validate", "a", "b"], ["launch", "plan", "--port", "x"], ["sweep", "a.yaml", "--jobs", "0"]),
        *([*SELF_PLAY, f"--{flag}"] for flag in ("accepted=-5", "attempts=0", "slip-rate=7", "per-minute=0", "most-money=nan")),
        *(["graph-query", "graph.sqlite", "--limit=-1"], ["trajectories", "clean", "a.jsonl", "--threshold=80"]),
    ],
)
def test_a_wrong_command_line_exits_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 64
    assert "usage: polymath" in capsys.readouterr().err


def test_init_writes_a_spec_that_compiles_and_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "my.yaml"
    assert main(["init", str(spec)]) == 0
    assert main(["validate", str(spec)]) == 0
    assert main(["compile", str(spec), "-o", str(tmp_path / "plan")]) == 0
    spec.write_text("mine")
    assert main(["init", str(spec)]) == 64
    assert spec.read_text() == "mine"
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["validate", "none.yaml"], ["launch", "none"], ["init", "no/folder/my.yaml"]])
def test_what_is_not_there_is_a_usage_error(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 64


def test_diagnostics_come_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "my.yaml"
    main(["init", str(spec)])
    capsys.readouterr()
    assert main(["validate", str(spec), "--json", "--set", "seed=-1"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["diagnostics"]
    assert (found["code"], found["file"]) == ("E0205", "--set seed=-1")


def test_a_bug_says_so_and_hides_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oh no")

    monkeypatch.setattr(driver, "check_spec", broken)
    monkeypatch.delenv("POLYMATH_DEBUG", raising=False)
    assert main(["validate", "my.yaml"]) == 1
    shown = capsys.readouterr().err
    assert "this is a bug in Polymath: RuntimeError: oh no" in shown and "Traceback" not in shown
    monkeypatch.setenv("POLYMATH_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main(["validate", "my.yaml"])


def test_a_place_that_cannot_be_written_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    for output in ("/proc/none.jsonl", "/proc/none/a.jsonl", f"{rows}/a.jsonl"):
        assert main(["trajectories", "convert", str(rows), "--to", "openai", "-o", output]) == 5, output
        assert "cannot be used" in capsys.readouterr().err
    assert main(["trajectories", "convert", str(rows), "--to", "openai", "-o", "/proc/none.jsonl", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_an_interrupt_exits_7(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "check_spec", interrupted)
    assert main(["validate", "my.yaml"]) == 7


def test_an_interrupt_while_the_command_line_is_read_exits_7_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polymath.runtime.cli.make_parser", interrupted)
    assert main(["validate", "my.yaml"]) == 7


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$schema"].endswith("2020-12/schema")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "polymath.runtime.cli", "schema"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
