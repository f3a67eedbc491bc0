"""`launch --dry-run` shows what would start and starts nothing; a plan with words that no compiler writes is refused."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.driver import compile_in_memory, compile_spec
from polymath.compiler.plan import Plan, Role, Sources, read_plan, read_sources
from polymath.compiler.store import write_plan
from polymath.runtime.cli import main
from polymath.runtime.launch import process
from polymath.runtime.launch.dry_run import dry_run
from polymath.runtime.launch.process import Group, argv, environment
from polymath.runtime.launch.run import launch_plan
from polymath.runtime.launch.safety import refuse_unsafe
from polymath.specs.diagnostics import UserError
from shipped import RECIPES

SMOKE = Path(__file__).parents[4] / "recipes" / "smoke.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    compile_spec(SMOKE, tmp_path / "plan")
    return tmp_path / "plan"


def changed(plan: Plan, **role: Any) -> Plan:
    job = plan.jobs[-1]
    return replace(plan, jobs=(*plan.jobs[:-1], replace(job, roles={"trainer": replace(job.roles["trainer"], **role)})))


def test_what_is_shown_is_what_launch_would_start(folder: Path, tmp_path: Path) -> None:
    plan = read_plan(folder)
    trainers = [one for one in dry_run(folder, run_dir=tmp_path / "run", port=1234).roles if one.role == "trainer"]
    assert [one.jobs for one in trainers] == list(plan.processes)
    for number, one in enumerate(trainers, 1):
        jobs = tuple(plan.job(job_id) for job_id in one.jobs)
        group = Group(plan_folder=folder, run_dir=tmp_path / "run", jobs=jobs, log=tmp_path / "log", port=1234)
        assert one.process == number and list(one.argv or ()) == argv(group)
        assert dict(one.environment) == environment(group, {})
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_every_role_of_every_job_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", str(folder), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["roles"]
    for job in read_plan(folder).jobs:
        assert {one["role"] for one in shown if job.id in one["jobs"]} == job.roles.keys()


def test_the_printed_line_reads_back_as_the_same_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", str(folder), "--dry-run"]) == 0
    lines = capsys.readouterr().out.replace("\\\n", "").splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    (trainer,) = [one for one in dry_run(folder).roles if one.role == "trainer"]
    (words,) = commands
    assert words[-len(trainer.argv or ()) :] == list(trainer.argv or ())
    assert "OMP_NUM_THREADS=1" in words


def test_what_this_machine_cannot_run_is_shown_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compile_spec(SMOKE, tmp_path / "plan", ["cluster={accelerator: h200, per_node: 2}"])
    assert main(["launch", str(tmp_path / "plan"), "--dry-run"]) == 0
    assert "# launch would refuse this here: " in capsys.readouterr().out


def test_nothing_passes_through_a_shell() -> None:
    source = Path(process.__file__).read_text()
    assert "shell=" not in source and "os.system" not in source and "popen(" not in source


@pytest.mark.parametrize(
    "role",
    [
        {"environment": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"environment": {"PYTHONPATH": "/tmp"}},
        {"environment": {"PATH": "/tmp"}},
        {"environment": {"BASH_ENV": "/tmp/x"}},
        {"environment": {"OMP_NUM_THREADS": "1; rm -rf /"}},
        {"environment": {"OMP_NUM_THREADS": "$(id)"}},
        {"torchrun": ("--nproc-per-node=2", "--no-python")},
        {"torchrun": ("--nproc-per-node=2;id",)},
        {"torchrun": ("--log-dir=/etc",)},
        {"url_env": "LD_PRELOAD"},
    ],
)
def test_a_plan_that_would_load_code_is_refused_before_anything_starts(folder: Path, tmp_path: Path, role: dict[str, Any]) -> None:
    plan = changed(read_plan(folder), **role)
    sources: Sources = read_sources(folder)
    write_plan(plan, sources, tmp_path / "crafted")  # its digests are right: only its words are wrong
    for start in (dry_run, launch_plan):
        with pytest.raises(UserError) as caught:
            start(tmp_path / "crafted", run_dir=tmp_path / "run")
        assert caught.value.exit_code == 4
        assert next(iter(role.values())) and plan.jobs[-1].id in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a;b", "../a", "a b", "$(id)", "a\nb", ""])
def test_names_with_metacharacters_are_refused(folder: Path, name: str) -> None:
    plan = read_plan(folder)
    with pytest.raises(UserError):
        refuse_unsafe(replace(plan, name=name))
    with pytest.raises(UserError):
        refuse_unsafe(replace(plan, jobs=(replace(plan.jobs[0], id=name),)))


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_what_the_compiler_writes_is_never_refused(recipe: Path) -> None:
    try:
        plan = compile_in_memory(recipe).plan
    except UserError:  # its data is not shipped
        return
    assert plan is not None
    refuse_unsafe(plan)
    assert all(isinstance(role, Role) for job in plan.jobs for role in job.roles.values())
