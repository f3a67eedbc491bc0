"""Qwen3 MoE: attention and experts in every layer.

Source of the layout: torchtitan 0.3.0, models/qwen3/__init__.py; of the names: transformers 5.19, models/qwen3_moe.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchtitan.models.common import CosSinRoPE, Embedding, Linear
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.qwen3 import (
    _EMBEDDING_INIT,
    _LINEAR_INIT,
    Qwen3Model,
    _build_qwen3_moe_layers,
    _qwen3_norm,
    parallelize_qwen3,
)
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

from ..attention import DocumentAttention
from .family import Family, refuse_unsupported


def model_config(config: Mapping[str, Any]) -> Qwen3Model.Config:
    """torchtitan's config of a `qwen3_moe` config.json."""
    refuse_unsupported(config, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    head_dim = config["head_dim"]
    rope = config.get("rope_parameters") or config
    tied = config["tie_word_embeddings"]
    model = Qwen3Model.Config(
        vocab_size=vocabulary,
        dim=width,
        norm=_qwen3_norm(width),
        enable_weight_tying=tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary,
            embedding_dim=width,
            param_init={"weight": skip_param_init} if tied else _EMBEDDING_INIT,
        ),
        lm_head=Linear.Config(in_features=width, out_features=vocabulary, param_init=_LINEAR_INIT),
        layers=_build_qwen3_moe_layers(
            n_layers=config["num_hidden_layers"],
            dim=width,
            n_heads=config["num_attention_heads"],
            n_kv_heads=config["num_key_value_heads"],
            head_dim=head_dim,
            moe_hidden_dim=config["moe_intermediate_size"],
            num_experts=config.get("num_experts") or config["num_local_experts"],
            top_k=config["num_experts_per_tok"],
            attn_backend="flex",
            moe_comm_backend="standard",
            rope=CosSinRoPE.Config(dim=head_dim, max_seq_len=config["max_position_embeddings"], theta=float(rope["rope_theta"])),
        ),
    )
    for layer in model.layers:
        layer.attention.inner_attention = DocumentAttention.Config()
        # torchtitan's balancing bias has no Hugging Face name: it would be dropped on export and the routing with it.
        layer.moe.load_balance_coeff = None
    return model


def transformers_weights(full: Mapping[str, Tensor], config: Qwen3Model.Config) -> dict[str, Tensor]:
    """The weights of `Qwen3MoeForCausalLM.state_dict()`, whose experts are stacked; its files hold them one by one."""
    names = {ours: theirs for theirs, ours in Qwen3StateDictAdapter(config, None).from_hf_map.items() if ours is not None}
    weights: dict[str, Tensor] = {}
    experts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in full.items():
        if ".inner_experts." in name:
            layer, weight = name.split(".moe.routed_experts.inner_experts.")
            experts.setdefault(layer, {})[weight] = tensor
            continue
        if name in names:
            weights[names[name]] = tensor
            continue
        layer_number = name.split(".")[1]
        weights[names[name.replace(f".{layer_number}.", ".{}.", 1)].format(layer_number)] = tensor
    for layer, weight in experts.items():
        prefix = f"model.{layer}.mlp.experts"
        if "w1_EFD" in weight:
            weights[f"{prefix}.gate_up_proj"] = torch.cat([weight["w1_EFD"], weight["w3_EFD"]], dim=1)
        if "w2_EDF" in weight:
            weights[f"{prefix}.down_proj"] = weight["w2_EDF"]
    return weights


FAMILY = Family(
    model_config=model_config,
    parallelize=parallelize_qwen3,
    state_dict_adapter=Qwen3StateDictAdapter,
    masks=lambda layout: layout,
    inputs={},
    transformers_weights=transformers_weights,
    joined=re.compile(r"(?<=\.)w[13]_EFD"),
)
