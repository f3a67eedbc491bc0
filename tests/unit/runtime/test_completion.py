"""`completion`: every shell gets every verb and flag, and bash really completes them."""

import shutil
import subprocess
from pathlib import Path

import pytest
from polymath.runtime.cli import main
from polymath.runtime.verbs.completion import SHELLS, flags_by_verb


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_holds_every_verb_flag_and_field(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for verb, flags in flags_by_verb().items():
        assert verb in text and all(flag.removeprefix("--") in text for flag in flags)
    assert "student.distill.loss.support.top_k" in text and "E0201" in text


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_that_is_here_can_read_it(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script(shell, capsys))
    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["va"], ["validate"]),
        (["validate", "--r"], ["--routing"]),
        (["validate", "--set", "student.sft.warm"], ["student.sft.warmup="]),
        (["graph", "--format", "m"], ["mermaid"]),
        (["explain", "E020"], [f"E020{digit}" for digit in range(1, 10)]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text(script("bash", capsys))
    code = 'source "$1"; shift; COMP_WORDS=(polymath "$@"); COMP_CWORD=$#; _polymath; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", code, "bash", str(tmp_path / "script"), *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
