"""torchtitan's model computes what transformers computes, packed or alone, and hands its weights back under transformers' names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.compiler.experts import recipe_of
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.stages.import_model import write_random_model
from polymath.runtime.trainer.model import document_inputs, model_spec, transformers_weights
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import ExpertPrecision
from polymath.specs.model import HybridShape, Model, ModelShape
from polymath.te_kernels.converter import scaled_experts
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchtitan.distributed.utils import set_spmd_backend
from transformers import AutoModelForCausalLM

LENGTHS = (5, 17, 1, 9)
FLOAT32 = ExpertPrecision(format="float32")


HYBRID = HybridShape(
    full_attention_every=2, key_heads=1, value_heads=2, key_head_dim=32, value_head_dim=32, rotary_dim=8, shared_expert_hidden=16
)
SHORT = dataclasses.replace(HYBRID, full_attention_every=4, conv_kernel=3)
SHAPES = {"untied": (False, None), "tied": (True, None), "hybrid": (False, HYBRID), "tied hybrid": (True, SHORT)}


def _shape(tied: bool, hybrid: HybridShape | None) -> ModelShape:
    return ModelShape(
        hidden=32, layers=4, heads=4, kv_heads=2, head_dim=32, experts=4, experts_per_token=2, expert_hidden=16, context_tokens=64,
        tied_embeddings=tied, hybrid=hybrid,
    )  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in Hugging Face form, as the import job writes it."""
    return _write(tmp_path_factory.mktemp("model"), _shape(*SHAPES[request.param]))


def _write(path: Path, shape: ModelShape) -> Path:
    family = "qwen3_moe" if shape.hybrid is None else "qwen3_5_moe"
    tokenizer = load_tokenizer(Model(family=family, checkpoint="random", tokenizer="builtin:bytes", shape=shape))
    write_random_model(path, shape, tokenizer, seed=5)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> nn.Module:
    """torchtitan's model with the same weights, not sharded."""
    set_spmd_backend("partial_dtensor")  # as the trainer sets it: the default wants a mesh
    spec = model_spec(folder, experts=FLOAT32)
    model = spec.model.build()
    model.init_weights(buffer_device=None)
    adapter = spec.state_dict_adapter(spec.model, str(folder))
    published = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    missing, unexpected = model.load_state_dict(adapter.from_hf(published), strict=False)
    assert not unexpected and not [name for name in missing if "lm_head" not in name]
    assert not [name for name, _ in model.named_parameters() if "vision" in name]
    return model.eval()


def _logits(folder: Path, model: nn.Module, rows: list[list[int]], lengths: list[list[int]]) -> Tensor:
    documents = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    spec = model_spec(folder, experts=FLOAT32)
    with torch.no_grad():
        return model(torch.tensor(rows), positions=positions, **document_inputs(spec, documents))


def test_the_logits_of_a_packed_document_are_those_of_the_document_alone(folder: Path, ours: nn.Module) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in LENGTHS]
    packed = _logits(folder, ours, [[token for document in documents for token in document]], [list(LENGTHS)])[0]
    for document, found in zip(documents, packed.split(LENGTHS), strict=True):
        torch.testing.assert_close(found, _logits(folder, ours, [document], [[len(document)]])[0], atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(found, theirs(torch.tensor([document])).logits[0], atol=1e-5, rtol=0)


def test_the_full_weights_are_those_of_transformers_by_name_and_value(folder: Path, ours: nn.Module) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    found = dict(transformers_weights(ours, model_spec(folder, experts=FLOAT32)))
    assert {name for name in found if not name.startswith("lm_head")} == {name for name in theirs if not name.startswith("lm_head")}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, theirs[name], atol=0, rtol=0)


def test_rows_are_as_separate_as_documents(folder: Path, ours: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 256, (2, 12), generator=generator).tolist()
    both = _logits(folder, ours, rows, [[12], [7, 5]])
    torch.testing.assert_close(both[1:], _logits(folder, ours, rows[1:], [[7, 5]]), atol=1e-5, rtol=0)


def test_what_is_trained_comes_back_through_the_folders_own_names(folder: Path, ours: nn.Module, tmp_path: Path) -> None:
    spec = model_spec(folder, experts=FLOAT32)
    exported = spec.state_dict_adapter(spec.model, str(folder)).to_hf(dict(ours.state_dict()))
    save_file({name: tensor.contiguous() for name, tensor in exported.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(torch.arange(20)[None]).logits, original(torch.arange(20)[None]).logits, atol=1e-4, rtol=0
        )


def test_experts_in_fp8_have_the_weights_of_every_family_and_stay_near(folder: Path, ours: nn.Module) -> None:
    experts = ExpertPrecision(format="fp8_blockwise", backend="reference", except_layers=(1,))
    model = model_spec(folder, experts=experts, recipe=recipe_of(experts)).model.build()
    model.load_state_dict(ours.state_dict())
    assert [name for name, _ in scaled_experts(model)] == [f"layers.{n}.moe.routed_experts.inner_experts" for n in (0, 2, 3)]
    rows = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(1)).tolist()
    exact, near = (_logits(folder, one, rows, [[12], [7, 5]]) for one in (ours, model))
    assert 0 < ((near - exact).norm() / exact.norm()).item() < 0.05


def test_a_family_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="'llama' cannot be trained"):
        model_spec(tmp_path, experts=FLOAT32)


UNSUPPORTED = {
    "longer context": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 0.25}},
    "another activation": {"hidden_act": "gelu"},
    "another epsilon": {"rms_norm_eps": 1e-5},
}


@pytest.mark.parametrize("change", UNSUPPORTED.values(), ids=list(UNSUPPORTED))
def test_a_model_that_would_load_and_mean_something_else_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match="cannot be trained"):
        model_spec(tmp_path, experts=FLOAT32)


def test_layers_in_an_irregular_order_are_refused(tmp_path: Path) -> None:
    config = json.loads((_write(tmp_path, _shape(False, HYBRID)) / "config.json").read_text())
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_types": kinds}))
    with pytest.raises(UserError, match="layer_types"):
        model_spec(tmp_path, experts=FLOAT32)


def test_experts_that_transformer_engine_cannot_compute_here_are_refused_with_what_to_do(folder: Path) -> None:
    experts = ExpertPrecision(format="fp8_blockwise", backend="te")
    with pytest.raises(UserError, match="cannot compute Float8BlockScaling here") as caught:
        model_spec(folder, experts=experts, recipe=recipe_of(experts))
    assert caught.value.exit_code == ExitCode.UNFIT
    assert "pip install" in str(caught.value.fix)
