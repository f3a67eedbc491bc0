"""What a launch asks of the machine."""

from dataclasses import replace
from typing import Any

import pytest
from polymath.compiler.plan import Job, Role
from polymath.runtime.launch.machine import MARGIN_BYTES, check_nodes, needed_bytes, parameters
from polymath.specs.build import to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Checkpoint
from polymath.specs.model import Model, ModelShape

SHAPE = ModelShape(
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    experts=4,
    experts_per_token=2,
    expert_hidden=64,
    context_tokens=256,
)
SETTINGS = {
    "model": to_json(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes", shape=SHAPE)),
    "checkpoint": to_json(Checkpoint(keep=2)),
}


def job_of(kind: str, **changes: Any) -> Job:
    job = Job(
        id=kind,
        kind=kind,
        needs=(),
        seed=0,
        recipe_digest="a" * 64,
        exact_digest="b" * 64,
        roles={"trainer": Role(devices=2, torchrun=("--nnodes=1", "--nproc-per-node=2"), environment={})},
        inputs={},
        settings=SETTINGS,
    )
    return replace(job, **changes)


def test_parameters_are_those_that_transformers_builds_up_to_the_norms() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        tie_word_embeddings=False,
    )
    built = sum(one.numel() for one in Qwen3MoeForCausalLM(config).parameters() if one.dim() > 1)
    assert parameters(SHAPE) == built


def test_a_training_job_needs_room_for_its_model_and_the_checkpoints_alive_at_once() -> None:
    model_bytes = 4 * parameters(SHAPE)
    assert needed_bytes([job_of("sft")]) == MARGIN_BYTES + model_bytes * (1 + 3 * 3)
    assert needed_bytes([job_of("import"), job_of("evaluate")]) == MARGIN_BYTES + model_bytes
    assert needed_bytes([]) == 0


def test_a_plan_for_several_machines_is_refused() -> None:
    role = Role(devices=16, torchrun=("--nnodes=2", "--nproc-per-node=8"), environment={})
    with pytest.raises(UserError, match="2 machines") as caught:
        check_nodes([job_of("import"), job_of("sft", roles={"trainer": role})])
    assert caught.value.exit_code == 5
