"""The Python API does what the verbs do, its page's example runs, and asking for it loads nothing slow."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from polymath import compiler
from polymath.compiler.plan import read_plan
from polymath.runtime.cli import main
from polymath.specs.diagnostics import SpecInvalid

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
SIGNATURES = {
    "load": "(path, overrides=())",
    "compile": "(path, folder=None, overrides=(), *, frozen=False)",
    "diff": "(before, after)",
    "estimate": "(path, overrides=())",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my.yaml"]) == 0
    return tmp_path


def test_the_signatures_are_frozen() -> None:
    def bare(function: object) -> str:
        signature = inspect.signature(function)  # type: ignore[arg-type]
        parameters = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
        return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))

    assert sorted(compiler.__all__) == sorted(SIGNATURES)
    assert {name: bare(getattr(compiler, name)) for name in SIGNATURES} == SIGNATURES


def test_the_example_of_the_page_runs_without_torch(folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    code += '\nimport sys\nslow = {"torch", "transformers", "rich", "jsonschema"} & set(sys.modules)\nassert not slow, slow\n'
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "0.004 ['search', 'tools']",
        "numerics student.sft.learning_rate 0.004 -> 0.01",
        "E0210",
        "search is taught by searcher",
    ):
        assert words in done.stdout


def test_the_api_and_the_verb_write_the_same_plan(folder: Path) -> None:
    plan = compiler.compile("my.yaml", "by-api")
    assert main(["compile", "my.yaml", "-o", "by-verb"]) == 0
    assert read_plan(folder / "by-verb") == plan == read_plan(folder / "by-api")
    assert not compiler.diff("my.yaml", "by-api")


def test_a_mistake_is_an_exception_that_knows_all(folder: Path) -> None:
    with pytest.raises(SpecInvalid) as caught:
        compiler.load("my.yaml", ["seed=-1", "student.sft.steps=0"])
    assert {one.code for one in caught.value.diagnostics} == {"E0205"} and caught.value.exit_code == 3


def test_what_is_not_the_api_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        compiler.frobnicate  # noqa: B018
