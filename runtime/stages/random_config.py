"""The transformers config of a model that starts from random weights."""

from typing import Any

from ...specs.model import HybridShape, ModelShape
from ..data.tokenizers import ChatTokenizer

INITIAL_DEVIATION = 0.02
LOAD_BALANCE_WEIGHT = 0.001  # transformers' default; our losses add no such term, and the config only records it


def transformers_config(shape: ModelShape, tokenizer: ChatTokenizer) -> Any:
    """A config of `qwen3_moe`, or of `qwen3_5_moe`'s text model where the shape is a hybrid."""
    from transformers import Qwen3_5MoeTextConfig, Qwen3MoeConfig

    common = {
        "vocab_size": tokenizer.vocabulary_size,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "moe_intermediate_size": shape.expert_hidden,
        "max_position_embeddings": shape.context_tokens,
        "tie_word_embeddings": shape.tied_embeddings,
        "router_aux_loss_coef": LOAD_BALANCE_WEIGHT,
        "initializer_range": INITIAL_DEVIATION,
        "eos_token_id": tokenizer.end_of_turn_id,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": None,
        "dtype": "float32",
    }
    rope = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.hybrid is not None:
        return Qwen3_5MoeTextConfig(**common, **_hybrid(shape, shape.hybrid, rope))
    return Qwen3MoeConfig(
        **common,
        intermediate_size=shape.expert_hidden,  # of dense layers, of which there are none
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        rope_parameters=rope,
    )


def _hybrid(shape: ModelShape, hybrid: HybridShape, rope: dict[str, Any]) -> dict[str, Any]:
    pairs = hybrid.rotary_dim // 2
    height = (pairs + 1) // 3
    width = pairs // 3
    return {
        "shared_expert_intermediate_size": hybrid.shared_expert_hidden,
        "linear_num_key_heads": hybrid.key_heads,
        "linear_num_value_heads": hybrid.value_heads,
        "linear_key_head_dim": hybrid.key_head_dim,
        "linear_value_head_dim": hybrid.value_head_dim,
        "linear_conv_kernel_dim": hybrid.conv_kernel,
        "layer_types": [
            "linear_attention" if number % hybrid.full_attention_every else "full_attention"
            for number in range(1, shape.layers + 1)
        ],
        "rope_parameters": {
            **rope,
            "partial_rotary_factor": hybrid.rotary_dim / shape.head_dim,
            # How pictures would share the pairs of a head out to time, height and width; text has one position for all three.
            "mrope_section": [pairs - height - width, height, width],
            "mrope_interleaved": True,
        },
    }
