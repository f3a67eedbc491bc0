"""Dimensions of model families and of their published sizes, as data.

Sources, read in their own files: `models/qwen3/__init__.py` (`_30b_a3b`) and `models/qwen3_5/__init__.py` (`_35b_a3b`) of
torchtitan 0.3.0, which a test compares with this table; for context lengths the models' config.json (`max_position_embeddings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .model import HybridShape, Model, ModelShape

# Rows of the embedding that a built-in tokenizer needs (a multiple of 64); a test compares them with the runtime's tokenizers.
BUILTIN_VOCABULARIES = {"builtin:tiny-words": 384, "builtin:bytes": 320}

# By family, what a config.json may call it; the second of Qwen3.5 is its text model without the vision tower.
MODEL_TYPES: Mapping[str, tuple[str, ...]] = {
    "qwen3_moe": ("qwen3_moe",),
    "qwen3_5_moe": ("qwen3_5_moe", "qwen3_5_moe_text"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearAttention:
    """Gated DeltaNet layers (Qwen3.5): every layer but each `full_attention_every`-th."""

    full_attention_every: int  # layers 4, 8, ... attend in full where it is 4
    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int  # of the depthwise convolutions over queries, keys and values

    @property
    def keys(self) -> int:
        """Width of all key heads, which is that of all query heads."""
        return self.key_heads * self.key_head_dim

    @property
    def values(self) -> int:
        """Width of all value heads."""
        return self.value_heads * self.value_head_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """The vision tower, which a family carries and text never reaches."""

    hidden: int
    ffn_hidden: int
    layers: int
    heads: int
    patch: int  # pixels
    temporal_patch: int  # frames
    merge: int  # patches per side that become one token
    positions: int  # learned position embeddings


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimensions:
    """What parameters, memory and FLOPs of a model are counted from."""

    vocabulary: int | None  # rows of an embedding; None where only the tokenizer's files know
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    expert_hidden: int
    context_tokens: int
    rope_theta: float
    tied_embeddings: bool = False
    shared_expert_hidden: int = 0  # inner width of the gated expert that every token visits; 0 without one
    attention_gate: bool = False  # whether queries bring a gate for attention's output
    rotary_dim: int | None = None  # of a head; None for all of it
    linear_attention: LinearAttention | None = None
    vision: Vision | None = None

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, which is that of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def rotated(self) -> int:
        """Width of a head that rotary positions turn."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def full_layers(self) -> int:
        """Layers that attend in full."""
        return self.layers if self.linear_attention is None else self.layers // self.linear_attention.full_attention_every

    @property
    def linear_layers(self) -> int:
        """Layers with Gated DeltaNet instead."""
        return self.layers - self.full_layers


SIZES: Mapping[str, Mapping[str, Dimensions]] = {  # by family and name
    "qwen3_moe": {
        "30b-a3b": Dimensions(
            vocabulary=151_936,
            hidden=2048,
            layers=48,
            heads=32,
            kv_heads=4,
            head_dim=128,
            experts=128,
            experts_per_token=8,
            expert_hidden=768,
            context_tokens=40_960,
            rope_theta=1e6,
        ),
    },
    "qwen3_5_moe": {
        "35b-a3b": Dimensions(
            vocabulary=248_320,
            hidden=2048,
            layers=40,
            heads=16,
            kv_heads=2,
            head_dim=256,
            experts=256,
            experts_per_token=8,
            expert_hidden=512,
            context_tokens=262_144,
            rope_theta=1e7,
            shared_expert_hidden=512,
            attention_gate=True,
            rotary_dim=64,
            linear_attention=LinearAttention(
                full_attention_every=4, key_heads=16, value_heads=32, key_head_dim=128, value_head_dim=128, conv_kernel=4
            ),
            vision=Vision(hidden=1152, ffn_hidden=4304, layers=27, heads=16, patch=16, temporal_patch=2, merge=2, positions=2304),
        ),
    },
}


def dimensions_of(model: Model, config: Mapping[str, Any] | None = None) -> Dimensions | None:
    """The dimensions of a spec's model; None where nothing says them.

    Args:
        config: the checkpoint's config.json, where it can be read; it is believed before `size`.

    Raises:
        ValueError: the config lacks a dimension or is of another family; says which.
    """
    if model.shape is not None:
        return _of_shape(model.shape, BUILTIN_VOCABULARIES.get(model.tokenizer))
    if config is not None:
        return of_config(model.family, config)
    return SIZES[model.family].get(model.size) if model.size is not None else None


def _of_shape(shape: ModelShape, vocabulary: int | None) -> Dimensions:
    return Dimensions(
        vocabulary=vocabulary,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        expert_hidden=shape.expert_hidden,
        context_tokens=shape.context_tokens,
        rope_theta=shape.rope_theta,
        tied_embeddings=shape.tied_embeddings,
        **(_of_hybrid(shape.hybrid) if shape.hybrid is not None else {}),
    )


def _of_hybrid(hybrid: HybridShape) -> dict[str, Any]:
    return {
        "shared_expert_hidden": hybrid.shared_expert_hidden,
        "attention_gate": True,
        "rotary_dim": hybrid.rotary_dim,
        "linear_attention": LinearAttention(
            full_attention_every=hybrid.full_attention_every,
            key_heads=hybrid.key_heads,
            value_heads=hybrid.value_heads,
            key_head_dim=hybrid.key_head_dim,
            value_head_dim=hybrid.value_head_dim,
            conv_kernel=hybrid.conv_kernel,
        ),
    }


def of_config(family: str, config: Mapping[str, Any]) -> Dimensions:
    """The dimensions that a Hugging Face config.json states, of a `qwen3_moe` or `qwen3_5_moe` checkpoint.

    Raises:
        ValueError: it lacks a dimension or is of another family; says which.
    """
    if config.get("model_type") not in MODEL_TYPES[family]:
        raise ValueError(f"its `model_type` is {config.get('model_type')!r}, not {family!r}")
    text: Mapping[str, Any] = config.get("text_config", config)
    try:
        rope: Mapping[str, Any] = text.get("rope_parameters") or text.get("rope_scaling") or {}
        rope_theta = float(text["rope_theta"] if "rope_theta" in text else rope["rope_theta"])
        return Dimensions(
            vocabulary=int(text["vocab_size"]),
            hidden=int(text["hidden_size"]),
            layers=int(text["num_hidden_layers"]),
            heads=int(text["num_attention_heads"]),
            kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text["head_dim"]),
            experts=int(text["num_experts"] if "num_experts" in text else text["num_local_experts"]),  # older and newer config
            experts_per_token=int(text["num_experts_per_tok"]),
            expert_hidden=int(text["moe_intermediate_size"]),
            context_tokens=int(text["max_position_embeddings"]),
            rope_theta=rope_theta,
            tied_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            **(_hybrid(config, text, rope) if family == "qwen3_5_moe" else {}),
        )
    except KeyError as missing:
        raise ValueError(f"it has no {missing}") from missing


def _hybrid(config: Mapping[str, Any], text: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """What Qwen3.5 has beyond Qwen3."""
    share = float(text.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)))
    found: dict[str, Any] = {
        "shared_expert_hidden": int(text["shared_expert_intermediate_size"]),
        "attention_gate": True,
        "rotary_dim": round(int(text["head_dim"]) * share),
        "linear_attention": LinearAttention(
            full_attention_every=_full_attention_every(text),
            key_heads=int(text["linear_num_key_heads"]),
            value_heads=int(text["linear_num_value_heads"]),
            key_head_dim=int(text["linear_key_head_dim"]),
            value_head_dim=int(text["linear_value_head_dim"]),
            conv_kernel=int(text["linear_conv_kernel_dim"]),
        ),
    }
    if "vision_config" in config:
        vision: Mapping[str, Any] = config["vision_config"]
        found["vision"] = Vision(
            hidden=int(vision["hidden_size"]),
            ffn_hidden=int(vision["intermediate_size"]),
            layers=int(vision["depth"]),
            heads=int(vision["num_heads"]),
            patch=int(vision["patch_size"]),
            temporal_patch=int(vision["temporal_patch_size"]),
            merge=int(vision["spatial_merge_size"]),
            positions=int(vision["num_position_embeddings"]),
        )
    return found


def _full_attention_every(text: Mapping[str, Any]) -> int:
    """The distance of full-attention layers, which transformers writes as a list of layer types or as an interval."""
    if "layer_types" in text:
        return list(text["layer_types"]).index("full_attention") + 1
    return int(text.get("full_attention_interval", 4))
