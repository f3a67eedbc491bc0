"""import: the base model, from random weights or from a checkpoint, as the model folder that every other job starts from.

What it does: writes `config.json`, safetensors and the tokenizer. A given checkpoint is checked before anything is copied: only
safetensors are taken (a pickle can run code when it is read), its family must be the spec's, and its tokenizer must fit.
What it does not do: change weights, download, or run code of the checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from safetensors import SafetensorError, safe_open

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import Model, ModelShape
from ..data.tokenizers import ChatTokenizer, load_tokenizer
from ..files import published_folder, write_json
from ..jobs import JobContext

INITIAL_DEVIATION = 0.02
LOAD_BALANCE_WEIGHT = 0.001  # transformers' default; our losses add no such term, and the config only records it
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def run(context: JobContext) -> None:
    """Publish the base model. The first rank works alone."""
    result: dict[str, Any] = {}
    if context.is_first_rank:
        model = context.setting("model", Model)
        checkpoint = None if model.checkpoint == "random" else local_folder(context.source("checkpoint"))
        tokenizer_folder = local_folder(context.source("tokenizer")) if "tokenizer" in context.job.inputs else None
        tokenizer = load_tokenizer(model, checkpoint, tokenizer_folder)
        with published_folder(context.folder / "model") as staging:
            if checkpoint is None:
                assert model.shape is not None
                write_random_model(staging, model.shape, tokenizer, context.job.seed)
            else:
                copy_checkpoint(checkpoint, staging, model.family, tokenizer)
            tokenizer.save(staging)
        result = {
            "parameters": count_parameters(context.folder / "model"),
            "vocabulary": len(tokenizer.hf),
            "tokenizer_digest": tokenizer.digest,
        }
    context.finish(result)


def write_random_model(folder: Path, shape: ModelShape, tokenizer: ChatTokenizer, seed: int) -> None:
    """A new Qwen3 MoE model: the same bytes for the same shape, tokenizer and seed."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.expert_hidden,  # of dense layers, of which there are none
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        num_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
        moe_intermediate_size=shape.expert_hidden,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        max_position_embeddings=shape.context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied_embeddings,
        router_aux_loss_coef=LOAD_BALANCE_WEIGHT,
        initializer_range=INITIAL_DEVIATION,
        eos_token_id=tokenizer.end_of_turn_id,
        pad_token_id=tokenizer.pad_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(config)
    model.save_pretrained(folder)


def copy_checkpoint(checkpoint: Path, folder: Path, family: str, tokenizer: ChatTokenizer) -> None:
    """Check a Hugging Face checkpoint and copy its config and weights.

    Raises:
        UserError: it is not a checkpoint of this family in safetensors, or the tokenizer has more tokens than it has embeddings.
    """
    config = _read_json(checkpoint / "config.json")
    if config.get("model_type") != family:
        raise UserError(
            f"{checkpoint} is a {config.get('model_type')!r} model; the spec says model.family: {family}",
            exit_code=ExitCode.SPEC,
            fix=f"name a checkpoint of the family {family}",
        )
    if len(tokenizer.hf) > int(config.get("vocab_size", 0)):
        raise UserError(
            f"tokenizer {tokenizer.name} has {len(tokenizer.hf)} tokens, {checkpoint} embeddings for {config.get('vocab_size')}",
            exit_code=ExitCode.SPEC,
            fix="use the checkpoint's own: model.tokenizer: from-checkpoint",
        )
    for name in weight_files(checkpoint):
        _check_safetensors(checkpoint / name)
        shutil.copyfile(checkpoint / name, folder / name)
    for name in (INDEX, "generation_config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    # Code that a checkpoint brings along is not copied; without the pointers to it nothing looks for it.
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "auto_map"})


def weight_files(folder: Path) -> list[str]:
    """Names of a model folder's safetensors files.

    Raises:
        UserError: there are none, only pickles, or the index names one that is missing.
    """
    if (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
    else:
        names = [SINGLE] if (folder / SINGLE).is_file() else []
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not names and pickles:
        raise UserError(
            f"{folder} holds its weights as {pickles[0]}, a pickle: reading one can run any code that is in it",
            exit_code=ExitCode.SPEC,
            fix="convert it to safetensors where you trust it, and name that folder",
        )
    if not names:
        raise UserError(
            f"{folder} holds no safetensors", exit_code=ExitCode.SPEC, fix="name the folder of a Hugging Face checkpoint"
        )
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} names {name}, which is not in the folder",
                exit_code=ExitCode.SPEC,
                fix="fetch the checkpoint again, whole",
            )
    return names


def count_parameters(folder: Path) -> int:
    """Numbers in all tensors of a model folder."""
    total = 0
    for name in weight_files(folder):
        with safe_open(folder / name, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                size = 1
                for extent in tensors.get_slice(key).get_shape():
                    size *= extent
                total += size
    return total


def local_folder(url: str) -> Path:
    """A path, or a `file:` URL, as a folder of this machine.

    Raises:
        UserError: it is elsewhere, or no folder.
    """
    if "://" in url and not url.startswith("file://"):
        raise UserError(f"{url} is not on this machine", exit_code=ExitCode.SPEC, fix="copy the folder here and name its path")
    folder = Path(unquote(urlsplit(url).path)) if url.startswith("file://") else Path(url)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", exit_code=ExitCode.SPEC, fix="name the folder of a Hugging Face checkpoint")
    return folder


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read as safetensors: {error}", exit_code=ExitCode.SPEC, fix="fetch the file again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", exit_code=ExitCode.SPEC, fix="name the folder of a Hugging Face checkpoint"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object", exit_code=ExitCode.SPEC)
    return value
