"""Plans and workers small enough to launch in a test: real folders, real processes, no training."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from polymath.compiler.plan import Input, Job, Plan, Role, Sources, compiler_version
from polymath.compiler.store import write_plan
from polymath.runtime.launch.process import Group, RunningProcess, environment
from polymath.runtime.launch.process import Running as RunningGroup
from polymath.specs.machine import Cluster

# Does what `polymath.runtime` does, as far as the launcher can tell. `BEHAVIOUR` names what each job does.
WORKER = """
import hashlib, json, os, sys, time
from pathlib import Path
from polymath.compiler.plan import read_plan
from polymath.runtime.files import write_json
from polymath.runtime.jobs import Outcome
from polymath.runtime.launch.watch import exit_with_launcher
exit_with_launcher()
plan, run_dir, names = read_plan(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3:]
behaviour = json.loads(os.environ.get("BEHAVIOUR", "{}"))
for name in names:
    job = plan.job(name)
    folder = run_dir / "jobs" / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (run_dir / "ran").open("a") as ran:
        ran.write(name + "\\n")
    what = behaviour.get(name, "finish")
    if what == "fail":
        Outcome(job=name, rank=1, exit_code=1, message="a peer left").write(folder)
        late = json.loads((folder / "outcome.1.json").read_text())
        write_json(folder / "outcome.1.json", {**late, "time": late["time"] + 5})
        Outcome(job=name, rank=0, exit_code=3, message="data.jsonl row 7 is not JSON").write(folder)
        sys.exit(1)
    if what == "vanish":
        (folder / "checkpoints" / "step-20").mkdir(parents=True)
        os.kill(os.getpid(), 9)
    if what == "wait":
        while not (run_dir / "STOP").exists():
            time.sleep(0.05)
        Outcome(job=name, rank=0, exit_code=7, message="stopped after step 3").write(folder)
        sys.exit(1)
    if what == "hang":
        time.sleep(600)
    write_json(folder / "result.json", {"job": name})
    size = (folder / "result.json").stat().st_size
    sha = hashlib.sha256((folder / "result.json").read_bytes()).hexdigest()
    files = {"result.json": {"bytes": size, "sha256": sha}}
    write_json(folder / "DONE.json", {"job": name, "recipe_digest": job.recipe_digest, "files": files})
"""


class PythonLauncher:
    """Starts the worker above in place of torchrun."""

    def start(self, group: Group) -> RunningGroup:
        group.log.parent.mkdir(parents=True, exist_ok=True)
        names = [job.id for job in group.jobs]
        command = [sys.executable, "-c", WORKER, str(group.plan_folder), str(group.run_dir), *names]
        with group.log.open("ab") as log:
            process = subprocess.Popen(command, env=environment(group, os.environ), stdout=log, stderr=log, start_new_session=True)
        return RunningProcess(process)


def make_plan(processes: tuple[tuple[str, ...], ...] = (("import", "sft"), ("distill",))) -> Plan:
    """A chain of jobs."""
    jobs: list[Job] = []
    for number, job_id in enumerate(name for process in processes for name in process):
        before = jobs[-1].id if jobs else None
        jobs.append(
            Job(
                id=job_id,
                kind=job_id if job_id in ("import", "sft", "distill", "evaluate") else "sft",
                needs=(before,) if before else (),
                seed=number,
                recipe_digest=f"{number:064x}",
                exact_digest=f"{number:064x}",
                roles={"trainer": Role(devices=2, torchrun=("--nnodes=1", "--nproc-per-node=2"), environment={})},
                inputs={"model": Input(job=before, output="model")} if before else {},
                settings={},
            )
        )
    return Plan(
        name="tiny",
        seed=7,
        compiler=compiler_version(),
        recipe_digest="a" * 64,
        exact_digest="b" * 64,
        cluster=Cluster(accelerator="cpu", per_node=2),
        jobs=tuple(jobs),
        processes=processes,
    )


@pytest.fixture
def plan_folder(tmp_path: Path) -> Path:
    write_plan(make_plan(), Sources(spec_folder=str(tmp_path), runs="runs", urls={}), tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def launcher() -> PythonLauncher:
    return PythonLauncher()


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what each job of the worker does; a job that is not named finishes."""
    import json

    def set_behaviour(**what: str) -> None:
        monkeypatch.setenv("BEHAVIOUR", json.dumps(what))

    return set_behaviour
