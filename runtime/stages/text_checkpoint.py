"""The text model of a Qwen3.5 checkpoint, in the one form that the trainer and the engines read.

What it does: leaves the vision tower and the multi-token head out, takes the text model's names, and stacks experts that are
stored one by one. Values stay as they are. What it does not do: hold the checkpoint in memory; tensors pass one by one into files
of a few gigabytes.

Published checkpoints stack their experts (`experts.gate_up_proj`), `save_pretrained` of transformers 5 writes them one by one.

Shapes: E experts, F expert width, D model width.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..shards import write_shards

WITH_VISION, TEXT = "model.language_model.", "model."
LEFT_OUT = ("model.visual.", "mtp.")
FILE_BYTES = 4 * 2**30
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def is_text_form(names: list[str]) -> bool:
    """Whether a checkpoint with these tensors can be taken as it is."""
    return not any(name.startswith((WITH_VISION, *LEFT_OUT)) or _EXPERT.fullmatch(name) for name in names)


def write_text_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write the text model's config.json, with what transformers knows by default spelled out."""
    from transformers import Qwen3_5MoeTextConfig

    text = dict(config.get("text_config", config))
    for name in ("tie_word_embeddings", "dtype", "eos_token_id", "pad_token_id"):
        if name in config:
            text.setdefault(name, config[name])
    unwanted = ("model_type", "architectures", "auto_map", "transformers_version")
    made = Qwen3_5MoeTextConfig(**{name: value for name, value in text.items() if name not in unwanted})
    made.architectures = ["Qwen3_5MoeForCausalLM"]
    made.save_pretrained(folder)


def write_text_weights(checkpoint: Path, files: list[str], folder: Path) -> int:
    """Write the text model's weights; returns how many tensors were left out."""
    where = {name: file for file in files for name in _names(checkpoint / file)}
    parts: dict[str, list[str]] = {}  # of every tensor that is written, by its new name
    left_out = 0
    for name in where:
        if name.startswith(LEFT_OUT):
            left_out += 1
            continue
        new = name.replace(WITH_VISION, TEXT, 1)
        expert = _EXPERT.fullmatch(new)
        if expert:
            new = f"{expert[1]}.{'down_proj' if expert[3] == 'down_proj' else 'gate_up_proj'}"
        parts.setdefault(new, []).append(name)

    open_files = {file: safe_open(checkpoint / file, framework="pt") for file in files}
    written = ((new, _stacked({name: open_files[where[name]].get_tensor(name) for name in names})) for new, names in parts.items())
    write_shards(written, folder, FILE_BYTES)
    return left_out


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def _stacked(tensors: Mapping[str, Tensor]) -> Tensor:
    """One tensor as it is; experts stored one by one as [E, 2F, D] (gate above up) or [E, D, F]."""
    if len(tensors) == 1 and not _EXPERT.fullmatch(next(iter(tensors))):
        return next(iter(tensors.values()))
    by_expert: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _EXPERT.fullmatch(name)
        assert found is not None
        by_expert.setdefault(int(found[2]), {})[found[3]] = tensor
    return torch.stack(
        [
            torch.cat([one["gate_proj"], one["up_proj"]]) if "gate_proj" in one else one["down_proj"]
            for _, one in sorted(by_expert.items())
        ]
    )
