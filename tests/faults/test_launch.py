"""A service that a plan needs and does not start is missed before a device is used: row T1 of the faults."""

import dataclasses
import json
from pathlib import Path

import pytest
from on_policy_runs import make_run
from polymath.compiler.plan import Input, Job, Plan, Role
from polymath.runtime.jobs import DONE
from polymath.runtime.launch import services
from polymath.runtime.launch.services import check_services
from polymath.specs.build import to_json
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import Engines, Service
from scripted_service import send, serving

ENGINES = Engines(scorer="vllm", teachers={"a": Service(url_env="A_URL", model="model")})


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Distillation by a served teacher, which an earlier job trains."""
    monkeypatch.setattr(services, "LOOK", dataclasses.replace(services.LOOK, attempts=1))
    context = make_run(tmp_path, {}, monkeypatch, engines=ENGINES)
    trained = dataclasses.replace(context.job, id="teachers.a.1", kind="sft", recipe_digest="a" * 64)
    role = Role(devices=0, torchrun=(), environment={}, engine="model", url_env="A_URL")
    distill = dataclasses.replace(
        context.job,
        roles={"teacher.a": role},
        inputs={"teacher.a": Input(job="teachers.a.1", output="model")},
        settings={"engines": to_json(ENGINES)},
    )
    return dataclasses.replace(context.plan, jobs=(trained, distill))


def _finish(job: Job, run_dir: Path) -> None:
    folder = run_dir / "jobs" / job.folder
    folder.mkdir(parents=True)
    (folder / DONE).write_text(json.dumps({"job": job.id, "recipe_digest": job.recipe_digest, "files": {}}))


def test_a_launch_without_the_service_of_a_trained_teacher_is_refused(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_URL", "http://127.0.0.1:9/v1")
    check_services(plan, plan.jobs, tmp_path)  # nobody can serve what is not trained yet
    _finish(plan.jobs[0], tmp_path)
    with pytest.raises(UserError, match=r"teacher.a at http://127.0.0.1:9/v1 .*refused") as caught:
        check_services(plan, plan.jobs, tmp_path)
    assert caught.value.exit_code == ExitCode.UNFIT
    with serving(lambda handler, _: send(handler, b'{"data": []}')) as url:
        monkeypatch.setenv("A_URL", url)
        check_services(plan, plan.jobs, tmp_path)


def test_a_launch_whose_environment_names_no_service_is_refused_at_once(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engines.teachers.a.url_env: A_URL is not set") as caught:
        check_services(plan, plan.jobs, tmp_path)
    assert caught.value.exit_code == ExitCode.UNFIT
