"""The training entry refuses what does not fit before it joins any ranks."""

from pathlib import Path

import pytest
from polymath.compiler.driver import compile_spec
from polymath.runtime.__main__ import main
from polymath.specs.diagnostics import ExitCode

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    compile_spec(SMOKE, tmp_path / "plan", [f"storage.runs={tmp_path / 'runs'}"])
    return tmp_path / "plan"


def _run(plan: Path, job: str, monkeypatch: pytest.MonkeyPatch, world_size: int = 2) -> int:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    return main([str(plan), "--job", job])


def test_a_world_size_that_does_not_fit_the_mesh_is_refused_with_the_command_that_does(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(plan, "sft", monkeypatch, world_size=3) == ExitCode.UNFIT
    said = capsys.readouterr().err
    assert "planned for 2 ranks, and 3 were started" in said
    assert "torchrun --nproc-per-node 2" in said
    assert not (plan.parent / "runs").exists()


def test_a_job_that_the_plan_lacks_is_refused_with_those_it_has(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(plan, "sfd", monkeypatch) == ExitCode.USAGE
    assert "teachers.operator.1" in capsys.readouterr().err


def test_an_edited_plan_is_refused_by_file(plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    job = plan / "jobs" / "sft.json"
    job.write_text(job.read_text().replace("0.004", "0.04"))
    assert _run(plan, "sft", monkeypatch) == ExitCode.STALE
    assert "sft.json is not what the compiler wrote" in capsys.readouterr().err
