"""From a Hugging Face `config.json` to a torchtitan model spec, and from torchtitan's weights to transformers' names.

Source of the layout: torchtitan 0.3.0, models/qwen3/__init__.py; of the names: transformers 5.19, models/qwen3_moe.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchtitan.distributed.pipeline_parallel import pipeline_llm
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
from torchtitan.protocols.model_spec import ModelSpec

from ...te_kernels.converter import ExpertsConverter
from . import bootstrap
from .attention import DocumentAttention


def model_spec(model_folder: Path, *, experts_format: Literal["float32", "bfloat16"]) -> ModelSpec:
    """The torchtitan model of a Hugging Face folder, to be sharded by torchtitan and filled from the folder's safetensors."""
    config = json.loads((model_folder / "config.json").read_text())
    return ModelSpec(
        name="qwen3",
        flavor=model_folder.name,
        model=ExpertsConverter.Config(format=experts_format).build().convert(_qwen3_moe(config)),
        parallelize_fn=_parallelize,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=Qwen3StateDictAdapter,
    )


def _qwen3_moe(config: Mapping[str, Any]) -> Qwen3Model.Config:
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


def _parallelize(model: torch.nn.Module, **kwargs: Any) -> torch.nn.Module:
    """torchtitan's own parallelisation. gloo has no pre-multiplied sum; the divide factor is 1, so a plain sum is the same."""
    model = parallelize_qwen3(model, **kwargs)
    if bootstrap.ON_CPU:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
    return model


@torch.no_grad()
def transformers_weights(model: torch.nn.Module, model_config: Qwen3Model.Config) -> dict[str, Tensor]:
    """Full tensors under the names of `Qwen3MoeForCausalLM.state_dict()`. Collective: every rank calls it and gets all."""
    names = {ours: theirs for theirs, ours in Qwen3StateDictAdapter(model_config, None).from_hf_map.items() if ours is not None}
    weights: dict[str, Tensor] = {}
    experts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ".inner_experts." in name:
            layer, weight = name.split(".moe.routed_experts.inner_experts.")
            experts.setdefault(layer, {})[weight] = full
            continue
        if name in names:
            weights[names[name]] = full
            continue
        layer_number = name.split(".")[1]
        weights[names[name.replace(f".{layer_number}.", ".{}.", 1)].format(layer_number)] = full
    for layer, weight in experts.items():
        prefix = f"model.{layer}.mlp.experts"
        weights[f"{prefix}.gate_up_proj"] = torch.cat([weight["w1_EFD"], weight["w3_EFD"]], dim=1)
        weights[f"{prefix}.down_proj"] = weight["w2_EDF"]
    return weights
