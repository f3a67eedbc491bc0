"""`doctor`: one line per thing that a run needs, and exit code 5 where one is missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.plan import read_plan
from polymath.runtime.cli import main
from polymath.runtime.jobs import DONE
from polymath.runtime.launch import doctor, services
from polymath.runtime.launch.doctor import Finding, examine
from polymath.specs.diagnostics import UserError

SMOKE = Path(__file__).parents[4] / "recipes" / "smoke.yaml"


def by_name(found: list[Finding]) -> dict[str, Finding]:
    return {one.what: one for one in found}


def plan(folder: Path, *overrides: str) -> Path:
    spec = folder / "smoke.yaml"
    shutil.copy(SMOKE, spec)
    compile_spec(spec, folder / "plan", [f"storage.runs={folder}/runs", *overrides])
    return folder / "plan"


def test_this_machine_can_run_the_smoke_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plan(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = by_name(examine(folder))
    assert {
        "python",
        "torch",
        "torchtitan",
        "transformers",
        "devices",
        "bubblewrap",
        "disk",
        "fsync",
        "loopback",
        "plan",
    } <= found.keys()
    assert not [one for one in found.values() if one.status == "fail"]
    assert main(["doctor", str(folder)]) == 0
    assert all(line.split()[0] in ("ok", "warn") for line in capsys.readouterr().out.splitlines())
    assert sorted(tmp_path.rglob("*")) == before, "nothing stays behind"


def test_a_plan_for_other_devices_fails_with_exit_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plan(tmp_path, "cluster={accelerator: h200, per_node: 2}")
    assert main(["doctor", str(folder), "--json"]) == 5
    answer = json.loads(capsys.readouterr().out)
    failed = {one["what"] for one in answer["findings"] if one["status"] == "fail"}
    assert not answer["ok"] and "devices" in failed


def test_a_package_outside_its_range_or_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version

    def fake(name: str) -> str:
        if name == "safetensors":
            raise doctor.PackageNotFoundError(name)
        return "9.9" if name == "torch" else real(name)

    monkeypatch.setattr(doctor, "version", fake)
    found = by_name(examine(None))
    assert found["torch"].status == "fail" and "9.9 is installed" in found["torch"].detail and "<2.16" in found["torch"].detail
    assert found["safetensors"] == Finding(status="fail", what="safetensors", detail="not installed")


def test_too_little_disk_a_slow_one_and_a_missing_sandbox_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plan(tmp_path)
    usage: Any = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1))
    monkeypatch.setattr(doctor, "_fsync_seconds", lambda path: 1.0)
    monkeypatch.setattr("polymath.runtime.worlds.sandbox._isolation", lambda: None)
    found = by_name(examine(folder))
    assert (found["disk"].status, found["fsync"].status) == ("fail", "warn")
    assert found["bubblewrap"].status == "warn", "no world of this plan runs a model's programs"


def test_an_edited_plan_is_refused(tmp_path: Path) -> None:
    folder = plan(tmp_path)
    (folder / "graph.mmd").write_text("x")
    with pytest.raises(UserError) as caught:
        examine(folder)
    assert caught.value.exit_code == 4


def test_a_teacher_whose_service_is_not_named_or_does_not_answer_fails_with_exit_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "LOOK", replace(services.LOOK, attempts=1))
    monkeypatch.delenv("OPERATOR_URL", raising=False)
    folder = plan(tmp_path, "engines={teachers: {operator: {url_env: OPERATOR_URL, model: m}}}")
    assert "engines.teachers.operator.url_env: OPERATOR_URL is not set" in by_name(examine(folder))["services"].detail
    monkeypatch.setenv("OPERATOR_URL", "http://127.0.0.1:9/v1")
    assert by_name(examine(folder))["services"].status == "ok", "nobody can serve what is not trained yet"
    compiled = read_plan(folder)
    trained = compiled.job(str(compiled.job("distill").inputs["teacher.operator"].job))
    done = tmp_path / "runs" / compiled.name / "jobs" / trained.folder / DONE
    done.parent.mkdir(parents=True)
    done.write_text(json.dumps({"job": trained.id, "recipe_digest": trained.recipe_digest, "files": {}}))
    assert "ConnectionRefused" in by_name(examine(folder))["services"].detail
    assert main(["doctor", str(folder)]) == 5
