"""Qwen3.5 goes in as its text model alone, whether its experts are stored stacked or one by one."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from polymath.compiler.plan import Input
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.stages.import_model import run
from polymath.specs.build import from_json, to_json
from polymath.specs.model import HybridShape, Model
from safetensors.torch import load_file
from stage_contexts import SHAPE, MakeContext, job_of, random_model
from transformers import AutoModelForCausalLM, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

HYBRID = HybridShape(
    full_attention_every=2, key_heads=1, value_heads=2, key_head_dim=32, value_head_dim=32, rotary_dim=8, shared_expert_hidden=16
)
FORMS = {"stacked": False, "one by one": True}  # the second is how transformers saves


def import_random(make_context: MakeContext, name: str, seed: int) -> Path:
    shape = dataclasses.replace(SHAPE, hybrid=HYBRID)
    model = Model(family="qwen3_5_moe", checkpoint="random", tokenizer="builtin:tiny-words", shape=shape)
    context = make_context(job_of("import", "import", {"model": to_json(model)}, seed=seed), run=name)
    run(context)
    return context.folder


def test_a_random_hybrid_is_the_same_bytes_for_the_same_seed(make_context: MakeContext) -> None:
    first, second, third = (import_random(make_context, name, seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    digests = [json.loads((folder / "DONE.json").read_text())["files"] for folder in (first, second, third)]
    assert digests[0] == digests[1]
    assert digests[0]["model/model.safetensors"] != digests[2]["model/model.safetensors"]


def test_a_random_hybrid_is_what_the_shape_says(make_context: MakeContext) -> None:
    folder = import_random(make_context, "a", 5)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")
    config = model.config
    assert config.layer_types == ["linear_attention", "full_attention"]
    assert (config.linear_num_key_heads, config.linear_num_value_heads, config.shared_expert_intermediate_size) == (1, 2, 16)
    assert model.model.rotary_emb.inv_freq.numel() * 2 == 8
    assert json.loads((folder / "result.json").read_text())["parameters"] == sum(one.numel() for one in model.parameters())


@pytest.fixture(params=FORMS)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint with a vision tower, in several files, as it is found on the hub."""
    tokenizer = load_tokenizer(from_json(Model, random_model()))
    text = {
        "vocab_size": tokenizer.vocabulary_size, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 1,
        "linear_num_value_heads": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 12,
        "num_experts_per_tok": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }  # fmt: skip
    torch.manual_seed(3)
    model = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=vision))
    folder = tmp_path / "published"
    model.save_pretrained(folder, save_original_format=FORMS[request.param], max_shard_size="100KB")
    tokenizer.save(folder)
    return folder


def test_the_text_model_of_a_published_checkpoint_answers_as_before(make_context: MakeContext, published: Path) -> None:
    assert len(list(published.glob("*.safetensors"))) > 1
    model = Model(family="qwen3_5_moe", checkpoint="given")
    job = job_of("import", "import", {"model": to_json(model)}, {"checkpoint": Input(source="model.checkpoint")})
    context = make_context(job, urls={"model.checkpoint": str(published)})
    run(context)

    folder = context.folder / "model"
    names = {name for path in folder.glob("*.safetensors") for name in load_file(path)}
    assert "model.layers.0.mlp.experts.gate_up_proj" in names and not [name for name in names if "visual" in name]
    assert set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) == names
    assert json.loads((context.folder / "result.json").read_text())["tensors_left_out"] > 0
    found, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert type(found).__name__ == "Qwen3_5MoeForCausalLM" and not info["missing_keys"] and not info["unexpected_keys"]
    expected = Qwen3_5MoeForConditionalGeneration.from_pretrained(published, dtype=torch.float32)
    tokens_BL = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(tokens_BL).logits, expected(input_ids=tokens_BL).logits, atol=1e-5, rtol=0)
