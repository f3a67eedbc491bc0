"""What this runtime cannot run is refused whole, by the fields that ask for it, before anything starts."""

import importlib.machinery
import importlib.util
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.plan import Plan, read_sources
from polymath.runtime import abilities
from polymath.runtime.__main__ import main
from polymath.runtime.abilities import refuse_what_cannot_run
from polymath.runtime.engines.vllm_launch import PYTHON
from polymath.runtime.launch.dry_run import dry_run
from polymath.runtime.launch.run import launch_plan
from polymath.specs.diagnostics import ExitCode, UserError

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
KINDS = ("sft", "grpo", "distill")
ONE = "placement.{kind}={{trainer: {{devices: 1}}}}"
TRAINER = "placement.{kind}.trainer"
ACTING_DEVICES = (
    "placement={grpo: {trainer: {devices: 1}, rollout: {devices: 1}}, distill: {trainer: {devices: 1}, rollout: {devices: 1}},"
    " evaluate: {rollout: {devices: 1}}}"
)


def compiled(folder: Path, *overrides: str) -> Plan:
    return compile_spec(TEMPLATE, folder / "plan", overrides)


def refusal(plan: Plan, folder: Path, *jobs: str) -> str:
    chosen = [plan.job(name) for name in jobs] or list(plan.jobs)
    with pytest.raises(UserError) as caught:
        refuse_what_cannot_run(plan, read_sources(folder / "plan"), chosen)
    assert caught.value.exit_code == ExitCode.UNFIT
    return caught.value.message


def test_servers_that_are_to_listen_outside_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = "engines={rollout: vllm, transport: http, listen: {address_env: ENGINE_ADDRESS, key_env: ENGINE_KEY}}"
    plan = compiled(tmp_path, engines, ACTING_DEVICES)
    monkeypatch.setenv(PYTHON, sys.executable)
    assert "engines.listen.address_env: ENGINE_ADDRESS is not set" in refusal(plan, tmp_path)
    monkeypatch.setenv("ENGINE_ADDRESS", "198.51.100.7:8000")
    assert "engines.listen.key_env: ENGINE_KEY is not set" in refusal(plan, tmp_path)
    monkeypatch.setenv("ENGINE_KEY", "a-key")
    assert "ENGINE_ADDRESS: nothing can listen on 198.51.100.7, port 8000" in refusal(plan, tmp_path)
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [plan.job("sft")])  # starts no engine
    notes = [role.note for role in dry_run(tmp_path / "plan").roles if role.role == "rollout"]
    assert notes and all(note is not None and "they answer at the address in $ENGINE_ADDRESS too" in note for note in notes)


def test_what_the_small_recipes_ask_for_is_run(tmp_path: Path) -> None:
    plan = compiled(tmp_path)
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), plan.jobs)


@pytest.mark.parametrize(("torch", "runs"), [("2.13.0", True), ("2.15.0", False)])
def test_tensor_parallelism_is_run_with_the_backend_that_it_was_tested_with(torch: str, runs: bool, tmp_path: Path) -> None:
    cluster = f"cluster={{accelerator: cpu, per_node: 2, software: {{torch: {torch}}}}}"
    plan = compiled(tmp_path, cluster, "placement.sft={trainer: {devices: 2, tensor: 2}}")
    if runs:
        refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [plan.job("sft")])
    else:
        assert "placement.sft.trainer.tensor: 2 with spmd_types" in refusal(plan, tmp_path, "sft")


def test_everything_that_cannot_run_is_named_at_once_with_its_jobs(tmp_path: Path) -> None:
    plan = compiled(
        tmp_path,
        "engines={rollout: vllm, transport: http}",
        "cluster={accelerator: h200, per_node: 8, nodes: 2}",
        "placement={sft: {trainer: {devices: 2, tensor: 2}}, grpo: {trainer: {devices: 2}, rollout: {devices: 2}},"
        " distill: {trainer: {devices: 2}, rollout: {devices: 2}}, evaluate: {rollout: {devices: 2}}}",
        "storage.artifacts=s3://bucket/prefix",
    )
    message = refusal(plan, tmp_path)
    for line in (
        "placement.sft.trainer.tensor: 2 with spmd_types, the backend of torch above 2.13 (sft, teachers.searcher.1)",
        "engines.rollout: vllm on 2 machines; an engine answers on the machine that it runs on (teachers.operator.1, distill,",
        "storage.artifacts",
    ):
        assert line in message, message


def test_a_job_that_asks_for_nothing_new_is_not_refused_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compiled(tmp_path, "engines.rollout=vllm", "cluster={accelerator: h200, per_node: 8, nodes: 2}", ACTING_DEVICES)
    monkeypatch.setattr(abilities, "_check_machine", lambda plan: None)
    sources = read_sources(tmp_path / "plan")
    refuse_what_cannot_run(plan, sources, [plan.job("import"), plan.job("sft")])
    assert "engines.rollout: vllm on 2 machines" in refusal(plan, tmp_path, "teachers.operator.1")


@pytest.mark.parametrize("transport", ["process", "http"])
def test_vllm_on_gpus_takes_weights_from_a_trainer_that_has_vllm_too(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = f"engines={{rollout: vllm, transport: {transport}}}"
    plan = compiled(tmp_path, engines, "cluster={accelerator: h200, per_node: 8}", ACTING_DEVICES)
    monkeypatch.setattr(abilities, "_check_machine", lambda plan: None)
    monkeypatch.setenv(PYTHON, sys.executable)
    found = {"vllm": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
    assert "sends weights to vLLM by nccl, and vLLM is not installed beside the trainer" in refusal(plan, tmp_path)
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [plan.job("evaluate.base")])  # whose engine keeps its weights
    found["vllm"] = importlib.machinery.ModuleSpec("vllm", None)  # type: ignore[assignment]
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), plan.jobs)


def test_vllm_is_looked_for_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compiled(tmp_path, "engines.rollout=vllm", ACTING_DEVICES)
    monkeypatch.setenv(PYTHON, str(tmp_path / "nowhere"))
    assert "is no program" in refusal(plan, tmp_path)
    monkeypatch.setenv(PYTHON, sys.executable)
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), plan.jobs)


def test_more_copies_than_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, sys.executable)
    two = "placement.distill.rollout.devices=2"
    plan = compiled(tmp_path, "engines.rollout=vllm", "cluster.per_node=4", ACTING_DEVICES, two)
    assert "placement.distill.rollout.devices: 2 copies of a model, and 1 ranks to ask them (distill)" in refusal(plan, tmp_path)


def test_the_report_s_teachers_are_run(tmp_path: Path) -> None:
    changes = ("advantage=process", "keep_mixed={attempts: 5, tasks: 8}")
    plan = compiled(tmp_path, *(f"teachers.operator.phases[0].{change}" for change in changes))
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), plan.jobs)


def test_a_judge_without_an_endpoint_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = "engines.judge={url_env: A_JUDGE, model: a-judge, key_env: A_KEY}"
    plan = compiled(tmp_path, judge, "domains.tools.reward={outcome_by: judge}")
    monkeypatch.delenv("A_JUDGE", raising=False)
    assert "A_JUDGE is not set" in refusal(plan, tmp_path)
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [plan.job("sft"), plan.job("distill")])  # nothing is judged there
    monkeypatch.setenv("A_JUDGE", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("A_KEY", "sk-secret")
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), plan.jobs)
    assert not any("sk-secret" in path.read_text() for path in (tmp_path / "plan").rglob("*") if path.is_file())


def test_a_loss_in_parts_is_refused_where_the_spec_says_how_long_a_row_is(tmp_path: Path) -> None:
    plan = compiled(tmp_path)
    job = plan.job("teachers.searcher.1")
    trainer = job.roles["trainer"]
    assert trainer.mesh is not None
    parted = replace(job, roles={"trainer": replace(trainer, mesh=replace(trainer.mesh, loss_chunks=4))})
    with pytest.raises(UserError, match=r"teachers\.searcher\.phases\[0\]\.sequence_tokens: .* in 4 parts"):
        refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [parted])


def test_random_weights_of_a_published_size_are_refused(tmp_path: Path) -> None:
    plan = compiled(tmp_path)
    job = plan.job("import")
    sized = replace(job, settings={**job.settings, "model": {**job.settings["model"], "size": "30b-a3b", "shape": None}})
    with pytest.raises(UserError, match=r"model\.size: 30b-a3b from random weights"):
        refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [sized])


def test_another_machine_or_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compiled(tmp_path, "cluster={accelerator: h100, per_node: 4}")
    monkeypatch.setattr(abilities, "GPU_DEVICES", (str(tmp_path), "nvidia[0-9]*"))
    assert "this has 0 GPUs" in refusal(plan, tmp_path)
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(abilities, "version", lambda _: "2.13.0+cu130")
    assert "is for torch 2.15.0; 2.13.0 is installed" in refusal(plan, tmp_path)
    monkeypatch.setattr(abilities, "version", lambda _: "2.15.0+cu130")
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), plan.jobs)


def test_tensor_parallel_experts_in_fp8_are_refused(tmp_path: Path) -> None:
    placed = "placement.sft={trainer: {devices: 2, tensor: 2}}"
    plan = compiled(tmp_path, placed, "precision.experts={format: fp8_current, backend: reference}")
    assert "placement.sft.trainer.tensor: 2 with experts in fp8_current" in refusal(plan, tmp_path, "sft")


def test_transformer_engine_is_missed_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = "precision.experts={format: fp8_blockwise, backend: te}"
    plan = compiled(tmp_path, "cluster={accelerator: h100, per_node: 1}", experts, *(f"{ONE.format(kind=k)}" for k in KINDS))
    installed = {"torch": "2.15.0+cu130"}

    def version(package: str) -> str:
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(abilities, "version", version)
    monkeypatch.setattr(abilities, "GPU_DEVICES", (str(tmp_path), "nvidia[0-9]*"))
    (tmp_path / "nvidia0").touch()
    message = refusal(plan, tmp_path, "sft")
    assert "Transformer Engine's Float8BlockScaling (h100, compute capability 9.0), and it is not installed here" in message
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [plan.job("import")])  # trains nothing
    installed["transformer-engine"] = "2.20.2"
    refuse_what_cannot_run(plan, read_sources(tmp_path / "plan"), [plan.job("sft")])


def test_launch_and_the_training_entry_refuse_before_they_write_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path, "storage.artifacts=s3://bucket/prefix", "engines.rollout=vllm", ACTING_DEVICES)
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match="cannot run plan"):
        launch_plan(tmp_path / "plan", run_dir=run_dir)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main([str(tmp_path / "plan"), "--job", "teachers.operator.1", "--run-dir", str(run_dir)]) == ExitCode.UNFIT
    assert not run_dir.exists()
    assert "cannot run plan" in capsys.readouterr().err
