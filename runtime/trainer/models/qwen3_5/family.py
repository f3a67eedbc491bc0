"""Qwen3.5 MoE for text: Gated DeltaNet between the attention layers, and a shared expert beside the routed ones.

torchtitan's model has a vision tower, which text never reaches: here it does not exist, in memory or in files.
Source of the layout: torchtitan 0.3.0, models/qwen3_5/__init__.py; of the names: transformers 5.19, models/qwen3_5_moe.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.models.common import Embedding, Linear
from torchtitan.models.common.attention import VarlenMetadata
from torchtitan.models.common.decoder import Decoder
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.qwen3_5 import (
    _EMBEDDING_INIT,
    GatedDeltaNet,
    MRoPE,
    Qwen35Model,
    _build_qwen35_moe_layers,
    _offset_norm,
    _output_linear_init,
    _qwen35_vision_encoder_config,
    parallelize_qwen3_5,
)
from torchtitan.protocols.model import BaseModel, ModelConfigConverter

from ... import bootstrap
from ...attention import DocumentAttention, DocumentLayout
from ..family import Family, refuse_unsupported
from .adapter import TextStateDictAdapter
from .delta_net import DocumentDeltaKernel, DocumentDeltaNet


class TextModel(Qwen35Model):
    """Qwen3.5 without eyes."""

    @dataclass(kw_only=True, slots=True)
    class Config(Qwen35Model.Config):
        pass

    def __init__(self, config: Config) -> None:
        Decoder.__init__(self, config)  # torchtitan's own would build the vision tower
        self.vision_encoder = None


class DocumentDeltaConverter(ModelConfigConverter):
    """Swaps fla's DeltaNet of every layer for the one in plain torch."""

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        pass

    def __init__(self, config: Config) -> None:
        """Nothing to choose."""

    def convert(self, model_config: BaseModel.Config) -> BaseModel.Config:
        for layer in model_config.layers:
            if layer.delta_net is not None:
                fields = {field.name: getattr(layer.delta_net, field.name) for field in dataclasses.fields(layer.delta_net)}
                layer.delta_net = DocumentDeltaNet.Config(**{**fields, "kernel": DocumentDeltaKernel.Config()})
        return model_config


def model_config(config: Mapping[str, Any]) -> BaseModel.Config:
    """torchtitan's config of a `qwen3_5_moe_text` config.json."""
    kinds = list(config["layer_types"])
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds)
    regular = ["linear_attention" if number % every else "full_attention" for number in range(1, len(kinds) + 1)]
    refuse_unsupported(config, layer_types=regular)
    width, vocabulary, head_dim = config["hidden_size"], config["vocab_size"], config["head_dim"]
    rope, tied = config["rope_parameters"], config["tie_word_embeddings"]
    rotary_dim = round(head_dim * rope["partial_rotary_factor"])
    model = TextModel.Config(
        vocab_size=vocabulary,
        dim=width,
        norm=_offset_norm(width),
        enable_weight_tying=tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary,
            embedding_dim=width,
            param_init={"weight": skip_param_init} if tied else _EMBEDDING_INIT,
        ),
        lm_head=Linear.Config(in_features=width, out_features=vocabulary, param_init=_output_linear_init(width)),
        layers=_build_qwen35_moe_layers(
            n_layers=config["num_hidden_layers"],
            dim=width,
            n_heads=config["num_attention_heads"],
            n_kv_heads=config["num_key_value_heads"],
            head_dim=head_dim,
            rotary_dim=rotary_dim,
            # Text has one position where pictures have three, so the sections, which share the angles out, change nothing.
            rope=MRoPE.Config(dim=rotary_dim, max_seq_len=config["max_position_embeddings"], theta=float(rope["rope_theta"])),
            moe_hidden_dim=config["moe_intermediate_size"],
            num_experts=config["num_experts"],
            top_k=config["num_experts_per_tok"],
            shared_expert_hidden_dim=config["shared_expert_intermediate_size"],
            n_key_heads=config["linear_num_key_heads"],
            n_value_heads=config["linear_num_value_heads"],
            key_head_dim=config["linear_key_head_dim"],
            value_head_dim=config["linear_value_head_dim"],
            full_attention_interval=every,
            attn_backend="flex",
            moe_comm_backend="standard",
        ),
        vision_encoder=_never_built(width),
    )
    for layer in model.layers:
        if layer.attention is not None:
            layer.attention.inner_attention = DocumentAttention.Config()
        if layer.delta_net is not None:
            _set_taps(layer.delta_net, config["linear_conv_kernel_dim"])
        # torchtitan's balancing bias has no Hugging Face name: it would be dropped on export and the routing with it.
        layer.moe.load_balance_coeff = None
    return DocumentDeltaConverter.Config().build().convert(model) if bootstrap.ON_CPU else model


def _set_taps(delta_net: GatedDeltaNet.Config, taps: int) -> None:
    """torchtitan's builder of layers knows only convolutions over four positions."""
    delta_net.conv_kernel_size = taps
    for conv in (delta_net.conv_q, delta_net.conv_k, delta_net.conv_v):
        conv.kernel_size = taps


def _never_built(width: int) -> Any:
    """A vision tower of the smallest kind: torchtitan's sharding writes into its config, whether it is built or not."""
    return _qwen35_vision_encoder_config(
        dim=8, ffn_dim=8, num_layers=1, num_heads=1, patch_size=1, temporal_patch_size=1, spatial_merge_size=1,
        out_hidden_size=width, num_position_embeddings=1,
    )  # fmt: skip


def masks(layout: DocumentLayout) -> dict[str, Any]:
    """What each kind of layer takes. DeltaNet without offsets would carry its state from row to row."""
    offsets = torch.tensor(layout.offsets, dtype=torch.int32, device=layout.groups[0].index_DS.device)
    longest = max(stop - start for start, stop in zip(layout.offsets, layout.offsets[1:], strict=False))
    return {
        "quadratic_attention": layout,
        "deltanet": VarlenMetadata(cu_seq_q=offsets, cu_seq_k=offsets, max_q=longest, max_k=longest, cu_seq_q_host=layout.offsets),
    }


def transformers_weights(full: Mapping[str, Tensor], config: BaseModel.Config) -> dict[str, Tensor]:
    """The weights of `Qwen3_5MoeForCausalLM.state_dict()`, which its files hold under the same names."""
    return TextStateDictAdapter(config, None).to_hf(dict(full))


FAMILY = Family(
    model_config=model_config,
    parallelize=parallelize_qwen3_5,
    state_dict_adapter=TextStateDictAdapter,
    masks=masks,
    inputs={"special_tokens": {"image_id": -1, "video_id": -1}},  # torchtitan asks for them even where there is only text
    transformers_weights=transformers_weights,
    joined=re.compile(r"(?<=\.)w[13]_EFD|(?<=\.in_proj_)[qkv]\b|(?<=\.conv_)[qkv]\b"),
)
