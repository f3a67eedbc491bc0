"""Sizes, engines, judge and number formats: what belongs together is there, once, and has an effect."""

import json
from pathlib import Path

import pytest
from polymath.compiler.driver import check_spec, compile_in_memory
from polymath.specs.diagnostics import SpecInvalid

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
BIG = Path(__file__).parents[3] / "recipes" / "agents_a1_35b.yaml"


def found(path: Path, *overrides: str) -> list[tuple[str, str]]:
    """Codes and what is said, of every mistake."""
    with pytest.raises(SpecInvalid) as caught:
        check_spec(path, overrides)
    return [(one.code, f"{one.detail} = {one.fix}") for one in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("model.shape={hidden: 64}", "E0203", "missing"),
        ("model.family=qwen3_moe", "E0330", "`size: 30b-a3b`"),
        ("model={family: qwen3_5_moe, checkpoint: 'file:///models/none'}", "E0304", "config.json is not on this machine"),
        ("model={family: qwen3_5_moe, checkpoint: 's3://models/none'}", "E0304", "`size: 35b-a3b`"),
        ("model={family: qwen3_5_moe, checkpoint: random, tokenizer: 'builtin:bytes'}", "E0304", "how large the random model is"),
        ("precision.experts={format: fp8_blockwise}", "E0331", "`backend: te`"),
        ("precision.experts={format: bfloat16, backend: te}", "E0303", "by PyTorch alone"),
        ("precision.experts={format: bfloat16, except_layers: [1]}", "E0303", "no layer's experts are computed in FP8"),
        ("precision.experts={format: fp8_current, backend: te, except_layers: [3, 40]}", "E0205", "at most 39"),
        ("precision.experts={format: fp8_current, backend: te, except_layers: [3, 3]}", "E0209", "3 stands in this list already"),
        (f"precision.experts={{format: fp8_current, backend: te, except_layers: {list(range(40))}}}", "E0303", "every layer"),
        ("engines={rollout: vllm, scorer: vllm}", "E0332", "no `engines.judge`"),
        ("engines.rollout=transformers", "E0303", "on the trainer's devices"),
        ("placement.distill={trainer: {devices: 16}}", "E0530", "add `rollout: {devices: ...}` to `placement.distill`"),
        ("placement.grpo.rollout={devices: 8, tensor: 3}", "E0531", "nearest that does: 2"),
        ("placement.evaluate={rollout: {devices: 8, shared: true}}", "E0303", "an evaluation trains nothing"),
        ("placement.grpo.rollout={devices: 32, shared: true}", "E0508", "32 devices shared with a trainer of 16 = at most 16"),
        ("cluster={accelerator: cpu, per_node: 32, software: {cuda: '13.0'}}", "E0303", "no CUDA"),
        ("teachers.searcher.phases[1].process_weight=0.7", "E0303", "`advantage: process`"),
        ("teachers.searcher.phases[1].settings={hopps: 9}", "E0201", "did you mean `hops`?"),
        ("teachers.searcher.phases[1].reference_kl=0", "E0303", "no phase has a `reference_kl`"),
    ],
)
def test_what_does_not_belong_together_is_named_with_what_to_do(override: str, code: str, words: str) -> None:
    mistakes = found(BIG, override)
    assert any(one == code and words in said for one, said in mistakes), mistakes


def test_a_shape_and_a_size_are_one_too_many() -> None:
    assert ("E0304", "`shape` already says how large the model is = remove one of the two") in found(TEMPLATE, "model.size=30b-a3b")


def test_a_checkpoint_that_is_not_of_the_size_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    config = {"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24, "rope_theta": 1e6}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8}
    config |= {"moe_intermediate_size": 768, "max_position_embeddings": 40960}
    (folder / "config.json").write_text(json.dumps(config))
    model = f"model={{family: qwen3_moe, size: 30b-a3b, checkpoint: {folder}}}"
    assert ("E0330", "`layers` of this size is 48; the checkpoint's config.json says 24") in [
        (code, said.partition(" = ")[0]) for code, said in found(TEMPLATE, model)
    ]
    other = f"model={{family: qwen3_5_moe, checkpoint: {folder}}}"
    assert any(code == "E0330" and "write `family: qwen3_moe`" in said for code, said in found(TEMPLATE, other))


def test_roles_have_their_devices_in_the_plan_and_the_phase_its_own_world() -> None:
    done = compile_in_memory(BIG)
    assert done.plan is not None
    plan = done.plan
    searcher, instructor = plan.job("teachers.searcher.2"), plan.job("teachers.instructor.2")
    assert {name: (role.devices, role.tensor) for name, role in searcher.roles.items()} == {
        "trainer": (16, 1),
        "rollout": (8, 2),
        "scorer": (8, 2),
        "judge": (0, 1),
    }
    assert searcher.roles["judge"].url_env == "JUDGE_URL" and searcher.roles["rollout"].engine == "vllm"
    assert set(instructor.roles) == {"trainer", "rollout"}, "nothing scores a phase without a reference, nobody judges rules"
    assert instructor.settings["domains"]["instructions"]["settings"]["most"] == 120
    assert plan.job("teachers.instructor.1").settings["domains"]["instructions"]["settings"]["most"] == 60
    assert plan.job("teachers.instructor.1").recipe_digest != instructor.recipe_digest


def test_where_a_judge_answers_and_what_is_installed_do_not_change_the_recipe() -> None:
    plan = compile_in_memory(BIG).plan
    moved = compile_in_memory(BIG, ("engines.judge.url_env=OTHER_URL", 'cluster.software.cuda="12.9"')).plan
    judged = compile_in_memory(BIG, ("engines.judge.model=another",)).plan
    assert plan is not None and moved is not None and judged is not None
    assert moved.recipe_digest == plan.recipe_digest and moved.exact_digest != plan.exact_digest
    assert judged.recipe_digest != plan.recipe_digest
