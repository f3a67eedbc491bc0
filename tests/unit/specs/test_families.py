"""Dimensions as data agree with the models that will be built."""

from typing import Any, get_args, get_type_hints

import pytest
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.specs.families import BUILTIN_VOCABULARIES, SIZES, dimensions_of, of_config
from polymath.specs.hardware import ACCELERATORS
from polymath.specs.machine import Cluster
from polymath.specs.model import Model
from transformers.models.qwen3_5_moe import Qwen3_5MoeConfig
from transformers.models.qwen3_moe import Qwen3MoeConfig


def test_the_language_offers_the_families_sizes_and_accelerators_that_have_data() -> None:
    hints = get_type_hints(Model)
    assert get_args(hints["family"]) == tuple(SIZES)
    offered = get_args(get_args(hints["size"])[0])
    assert offered == tuple(name for sizes in SIZES.values() for name in sizes)
    assert get_args(get_type_hints(Cluster)["accelerator"]) == tuple(ACCELERATORS)


@pytest.mark.parametrize("tokenizer", BUILTIN_VOCABULARIES)
def test_the_rows_of_a_builtin_tokenizer_are_those_of_the_runtime(tokenizer: str) -> None:
    model = Model(family="qwen3_moe", checkpoint="random", tokenizer=tokenizer)
    assert load_tokenizer(model).vocabulary_size == BUILTIN_VOCABULARIES[tokenizer]


def test_the_hybrid_size_is_what_its_family_is_by_default() -> None:
    config = Qwen3_5MoeConfig().to_dict()  # transformers' defaults are this size, but for what the release overrides
    read, named = of_config("qwen3_5_moe", config), SIZES["qwen3_5_moe"]["35b-a3b"]
    overridden = {"context_tokens", "rope_theta"}
    for name in type(named).__slots__:
        assert name in overridden or getattr(read, name) == getattr(named, name), name


def test_a_config_is_believed_before_the_size() -> None:
    config = {**Qwen3MoeConfig(head_dim=128, num_experts=64).to_dict(), "model_type": "qwen3_moe"}
    model = Model(family="qwen3_moe", checkpoint="file:///models/a", size="30b-a3b")
    assert dimensions_of(model, config) == of_config("qwen3_moe", config) != dimensions_of(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [({"model_type": "llama"}, "model_type"), ({"model_type": "qwen3_moe", "rope_theta": 1.0, "vocab_size": 3}, "hidden_size")],
)
def test_a_config_of_something_else_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_config("qwen3_moe", config)


def test_gpus_have_the_figures_that_estimates_need_and_every_figure_has_a_source() -> None:
    for name, one in ACCELERATORS.items():
        assert one.source
        assert one.is_gpu == (name != "cpu")
        if one.is_gpu:
            assert one.memory_gib and one.bfloat16_tflops and one.memory_gb_per_second and one.link_gb_per_second
            assert (one.fp8_tflops is not None) == (one.compute_capability >= (8, 9))  # type: ignore[operator]
