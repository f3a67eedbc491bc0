"""Open degrees are solved, closed ones are kept, and what cannot be is refused with what can."""

from pathlib import Path

import pytest
from polymath.compiler.compilation import Compilation
from polymath.compiler.driver import check_spec, compile_in_memory
from polymath.specs.diagnostics import SpecInvalid

SPEC = """
polymath: 1
name: big
seed: 7
model: {family: qwen3_5_moe, size: 35b-a3b, checkpoint: "s3://models/qwen3.5-35b-a3b"}
domains:
  search:
    world: search
    trajectories: [{path: "s3://data/search.jsonl"}]
    prompts: {train: 2000, heldout: 1000}
    limits: {turns: 300, response_tokens: 4096, context_tokens: 131072}
student:
  sft: {epochs: 1, batch_sequences: 16, sequence_tokens: 131072, learning_rate: 1e-5}
  distill:
    {steps: 9, prompts_per_step: {per_domain: 4}, sequence_tokens: 131072, learning_rate: 1e-6, loss: {support: {top_k: 64}}}
teachers:
  searcher:
    from: base
    phases:
      - {method: sft, domains: [search], steps: 9, batch_sequences: 16, sequence_tokens: 131072, learning_rate: 1e-5}
      - {method: grpo, domains: [search], steps: 9, prompts: 32, samples: 8, sequence_tokens: 131072, learning_rate: 1e-6}
  other:
    from: base
    phases:
      - {method: sft, domains: [search], steps: 8, batch_sequences: 16, sequence_tokens: 131072, learning_rate: 1e-5}
routing: [{domains: [search], teacher: searcher}]
cluster: {accelerator: h200, nodes: 4, per_node: 8}
placement:
  sft: {trainer: {devices: 32}}
  grpo: {trainer: {devices: 16}, rollout: {devices: 16}}
  distill: {trainer: {devices: 16}, rollout: {devices: 8}, scorer: {devices: 8}}
engines: {rollout: vllm, scorer: vllm}
"""
ALONE = SPEC.replace("  other:", "  #").split("  #")[0] + "routing:" + SPEC.split("routing:")[1]


def solved(tmp_path: Path, *overrides: str) -> Compilation:
    path = tmp_path / "big.yaml"
    path.write_text(ALONE)
    return check_spec(path, overrides)


def refused(tmp_path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SpecInvalid) as raised:
        solved(tmp_path, *overrides)
    return [f"{one.code} {one.detail} = {one.fix}" for one in raised.value.diagnostics]


def test_open_degrees_become_a_mesh_that_fits_and_divides_the_batch(tmp_path: Path) -> None:
    found = solved(tmp_path)
    mesh = found.meshes["sft"]

    assert mesh.replicate * mesh.shard * mesh.tensor * mesh.context * mesh.pipeline == 32
    assert 16 % mesh.data_parallel == 0  # 16 rows on 32 devices need tensor degree 2
    assert mesh.tensor == 2 and mesh.context == 1
    assert mesh.loss_chunks > 1  # 131,072 x 248,320 logits do not fit
    assert found.meshes["distill"].loss_chunks == 1  # its loss makes no logits


def test_runners_up_are_other_meshes_in_order_of_cost(tmp_path: Path) -> None:
    found = solved(tmp_path)
    others = found.runners_up["sft"]

    assert others and found.meshes["sft"] not in [one.mesh for one in others]
    assert [one.seconds for one in others] == sorted(one.seconds for one in others)


def test_every_open_value_says_why_it_is_what_it_is(tmp_path: Path) -> None:
    decisions = solved(tmp_path).decisions

    assert decisions[("placement", "sft", "trainer", "tensor")].by == "place"
    assert "cheapest" in decisions[("placement", "sft", "trainer", "tensor")].reason
    assert decisions[("placement", "distill", "rollout", "tensor")].by == "serve"


def test_what_is_written_is_kept(tmp_path: Path) -> None:
    mesh = solved(tmp_path, "placement.sft.trainer.expert=16", "placement.sft.trainer.activation_checkpoint=full").meshes["sft"]

    assert mesh.expert == 16 and mesh.activation_checkpoint == "full"


def test_context_parallelism_of_the_hybrid_is_refused_with_the_nearest_mesh_that_works(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, "placement.sft.trainer.context=2", "placement.sft.trainer.tensor=2")

    assert message.startswith("E0509 torchtitan 0.3.0 has no context parallelism for Qwen3.5")
    assert "parallelize.py" in message  # the source
    assert "= nearest that can:" in message and "tensor 2" in message.split("=")[-1] and "context" not in message.split("=")[-1]


def test_a_tensor_degree_that_cuts_heads_is_refused(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, "placement.sft.trainer.tensor=4")

    assert "whole key and value heads, of which the model has 2" in message and "tensor 2" in message


def test_what_does_not_fit_in_memory_is_refused_with_what_does(tmp_path: Path) -> None:
    (message,) = refused(
        tmp_path,
        "placement.sft.trainer.tensor=1",
        "placement.sft.trainer.activation_checkpoint=none",
        "student.sft.batch_sequences=32",
        "teachers.searcher.phases[0].batch_sequences=32",
    )[:1]

    assert message.startswith("E0507 `sft` needs") and "of 139.8 GiB" in message and "= nearest that fits:" in message


def test_a_model_that_fits_nowhere_says_how_much_is_missing(tmp_path: Path) -> None:
    messages = refused(
        tmp_path,
        "cluster.nodes=1",
        "placement.sft.trainer.devices=2",
        "placement.grpo.trainer.devices=2",
        "placement.grpo.rollout.devices=2",
        "placement.distill.trainer.devices=2",
        "placement.distill.rollout.devices=2",
        "placement.distill.scorer.devices=2",
        "student.sft.sequence_tokens=262144",
    )

    assert all(message.startswith("E0507") for message in messages) and "more devices" in messages[0]


def test_roles_that_need_more_than_the_cluster_are_refused(tmp_path: Path) -> None:
    (message,) = refused(tmp_path, "placement.grpo.rollout.devices=24")

    assert message.startswith("E0508 trainer 16 + rollout 24 = 40 devices, but the cluster has 32")


def test_an_engine_on_the_trainer_s_devices_needs_none_of_its_own_and_room_in_their_memory(tmp_path: Path) -> None:
    """With 16 + 16 + 8 devices the job does not fit on 32; of the trainer's memory, the engine takes its weights and a cache."""
    shared = "placement.distill={trainer: {devices: 16}, rollout: {devices: 16, tensor: 8, shared: true}, scorer: {devices: 8}}"
    assert any(one.startswith("E0508") for one in refused(tmp_path, shared.replace(", shared: true", "")))
    compiled = solved(tmp_path, shared)
    assert compiled.meshes["distill"].devices == 16
    (tmp_path / "big.yaml").write_text(ALONE)
    plan = compile_in_memory(tmp_path / "big.yaml", (shared,)).plan
    assert {name: (role.shared, role.weights) for name, role in plan.job("distill").roles.items()} == {
        "trainer": (False, None), "rollout": (True, "ipc"), "scorer": (False, None),
    }  # fmt: skip
    assert plan.job("teachers.searcher.2").roles["rollout"].weights == "nccl"
    assert any(one.startswith("E0507") for one in refused(tmp_path, shared.replace("tensor: 8", "tensor: 1")))


def test_an_embedded_engine_of_a_large_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text(
        ALONE.replace("engines: {rollout: vllm, scorer: vllm}", "")
        .replace(", rollout: {devices: 16}", "")
        .replace(", rollout: {devices: 8}, scorer: {devices: 8}", "")
    )
    with pytest.raises(SpecInvalid) as raised:
        check_spec(path)
    codes = [(one.code, one.fix) for one in raised.value.diagnostics]

    assert ("E0509", "write `rollout: vllm`") in codes and ("E0509", "write `scorer: vllm`") in codes


def test_independent_jobs_run_side_by_side_where_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text(ALONE)
    plan = compile_in_memory(path, ["cluster.nodes=8"]).plan
    assert plan is not None
    waves = [{job for number in wave for job in plan.processes[number]} for wave in plan.waves]

    assert any({"sft", "teachers.searcher.1"} <= wave for wave in waves)
    assert [number for wave in plan.waves for number in wave] == sorted(range(len(plan.processes)))
    by_id = {job.id: job for job in plan.jobs}
    finished: set[str] = set()
    for wave in waves:
        assert all(set(by_id[job].needs) <= finished | wave for job in wave)
        finished |= wave


def test_jobs_that_fill_the_machine_share_one_start_up(tmp_path: Path) -> None:
    plan = compile_in_memory(Path(__file__).parents[3] / "recipes" / "smoke.yaml").plan
    assert plan is not None

    assert len(plan.processes) == 1 and plan.waves == ((0,),)
