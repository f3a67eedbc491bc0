"""The real thing: torchrun, two ranks, the runtime's entry, and a job that fails by the user's mistake."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from polymath.compiler.plan import Job, Plan, Role, Sources, compiler_version
from polymath.compiler.store import write_plan
from polymath.runtime.launch.process import Group, argv, environment
from polymath.runtime.launch.run import launch_plan
from polymath.specs.build import to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Cluster
from polymath.specs.model import Domain, Limits, Model, ModelShape, Prompts, TrajectorySource

SHAPE = ModelShape(
    hidden=32, layers=1, heads=1, kv_heads=1, head_dim=32, experts=2, experts_per_token=1, expert_hidden=32, context_tokens=128
)


def two_jobs(train_tasks: int) -> Plan:
    """An import, then demonstrations of so many training tasks."""
    model = to_json(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words", shape=SHAPE))
    domain = Domain(
        world="tools",
        trajectories=(TrajectorySource(synthesize=6),),
        prompts=Prompts(train=train_tasks, heldout=4),
        limits=Limits(turns=4, response_tokens=12, context_tokens=128),
    )
    shared = {"needs": (), "seed": 1, "exact_digest": "e" * 64, "inputs": {}}
    role = Role(devices=2, torchrun=("--nnodes=1", "--nproc-per-node=2"), environment={"OMP_NUM_THREADS": "1"})
    jobs = (
        Job(id="import", kind="import", recipe_digest="a" * 64, roles={"trainer": role}, settings={"model": model}, **shared),
        Job(
            id="synthesize",
            kind="synthesize",
            recipe_digest=f"{train_tasks:064x}",
            roles={"trainer": role},
            settings={"model": model, "domains": to_json({"tools": domain})},
            **shared,
        ),
    )
    return Plan(
        name="two",
        seed=7,
        compiler=compiler_version(),
        recipe_digest="c" * 64,
        exact_digest="d" * 64,
        cluster=Cluster(accelerator="cpu", per_node=2),
        jobs=jobs,
        processes=(("import", "synthesize"),),
    )


def publish(plan: Plan, folder: Path) -> Path:
    write_plan(plan, Sources(spec_folder=str(folder), runs="runs", urls={}), folder / "plan")
    return folder / "plan"


@pytest.mark.multi_rank
def test_torchrun_runs_a_group_and_a_users_mistake_in_it_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        launch_plan(publish(two_jobs(train_tasks=10**6), tmp_path))
    assert caught.value.exit_code == 3
    assert "job `synthesize`: domain `tools`" in caught.value.message and "Traceback" not in caught.value.message
    log = (tmp_path / "runs" / "two" / "logs" / "process-1.log").read_text()
    assert "domain `tools`" in log and "--nproc-per-node=2" in log

    assert launch_plan(publish(two_jobs(train_tasks=4), tmp_path)) == 0
    folder = next((tmp_path / "runs" / "two" / "jobs").glob(f"synthesize-{4:064x}"[:23] + "*"))
    assert len((folder / "trajectories" / "tools.default.jsonl").read_text().splitlines()) == 6
    assert json.loads((folder / "outcome.1.json").read_text())["exit_code"] == 0


def test_a_group_is_started_on_loopback_offline_and_without_a_shell(tmp_path: Path) -> None:
    plan = two_jobs(train_tasks=4)
    job = replace(plan.jobs[0], id="$(touch pwned); `id`")
    group = Group(plan_folder=tmp_path / "a plan", run_dir=tmp_path / "run", jobs=(job,), log=tmp_path / "log", port=29517)
    command = argv(group)
    assert command[command.index("--job") + 1] == "$(touch pwned); `id`"
    assert "--rdzv-endpoint=127.0.0.1:29517" in command and "--local-addr=127.0.0.1" in command
    settings = environment(group, {"PATH": "/bin", "GLOO_SOCKET_IFNAME": "eth0"})
    assert settings["GLOO_SOCKET_IFNAME"] == "lo" and settings["HF_HUB_OFFLINE"] == "1" and settings["PATH"] == "/bin"
