"""import: the base model, from random weights or from a checkpoint, as the model folder that every other job starts from.

What it does: writes `config.json`, safetensors and the tokenizer. A given checkpoint is checked before anything is copied: only
safetensors are taken (a pickle can run code when it is read), its family must be the spec's, and its tokenizer must fit.
Of Qwen3.5 it takes the text model alone. What it does not do: change values, download, or run code of the checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from safetensors import SafetensorError, safe_open

from ...specs.diagnostics import ExitCode, UserError
from ...specs.families import MODEL_TYPES
from ...specs.model import Model, ModelShape
from ..data.renderer import Renderer
from ..data.tokenizers import ChatTokenizer, load_tokenizer
from ..files import published_folder, write_json
from ..jobs import JobContext

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
        Renderer(tokenizer)  # tries the chat template now, not when a later job begins
        left_out = 0
        with published_folder(context.folder / "model") as staging:
            if checkpoint is None:
                assert model.shape is not None
                write_random_model(staging, model.shape, tokenizer, context.job.seed)
            else:
                left_out = copy_checkpoint(checkpoint, staging, model.family, tokenizer)
            tokenizer.save(staging)
        result = {
            "parameters": count_parameters(context.folder / "model"),
            "vocabulary": len(tokenizer.hf),
            "tokenizer_digest": tokenizer.digest,
            "tool_calls": tokenizer.call_form,
            "tensors_left_out": left_out,  # of a vision tower or a multi-token head
        }
    context.finish(result)


def write_random_model(folder: Path, shape: ModelShape, tokenizer: ChatTokenizer, seed: int) -> None:
    """A new model: the same bytes for the same shape, tokenizer and seed."""
    import torch
    from transformers import Qwen3_5MoeForCausalLM, Qwen3MoeForCausalLM

    from .random_config import transformers_config

    config = transformers_config(shape, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3MoeForCausalLM(config) if shape.hybrid is None else Qwen3_5MoeForCausalLM(config)
    # Published checkpoints hold the experts of Qwen3 one by one and those of Qwen3.5 stacked; transformers writes all one by one.
    model.save_pretrained(folder, save_original_format=shape.hybrid is None)


def copy_checkpoint(checkpoint: Path, folder: Path, family: str, tokenizer: ChatTokenizer) -> int:
    """Check a Hugging Face checkpoint and copy its config and weights, those of the text model; says how many tensors stay behind.

    Raises:
        UserError: it is not a checkpoint of this family in safetensors, or the tokenizer has more tokens than it has embeddings.
    """
    config = _read_json(checkpoint / "config.json")
    if config.get("model_type") not in MODEL_TYPES[family]:
        raise UserError(
            f"{checkpoint} is a {config.get('model_type')!r} model; the spec says model.family: {family}",
            exit_code=ExitCode.SPEC,
            fix=f"name a checkpoint of the family {family}",
        )
    vocabulary = int(config.get("text_config", config).get("vocab_size", 0))
    if len(tokenizer.hf) > vocabulary:
        raise UserError(
            f"tokenizer {tokenizer.name} has {len(tokenizer.hf)} tokens, {checkpoint} embeddings for {vocabulary}",
            exit_code=ExitCode.SPEC,
            fix="use the checkpoint's own: model.tokenizer: from-checkpoint",
        )
    files = weight_files(checkpoint)
    for name in files:
        _check_safetensors(checkpoint / name)
    if (checkpoint / "generation_config.json").is_file():
        shutil.copyfile(checkpoint / "generation_config.json", folder / "generation_config.json")
    if family == "qwen3_5_moe":
        return _copy_text_model(checkpoint, files, config, folder)
    _copy_weights(checkpoint, files, folder)
    # Code that a checkpoint brings along is not copied; without the pointers to it nothing looks for it.
    write_json(folder / "config.json", {key: value for key, value in config.items() if key != "auto_map"})
    return 0


def _copy_text_model(checkpoint: Path, files: list[str], config: dict[str, Any], folder: Path) -> int:
    from .text_checkpoint import is_text_form, write_text_config, write_text_weights

    write_text_config(config, folder)
    if not is_text_form([name for file in files for name in _tensor_names(checkpoint / file)]):
        return write_text_weights(checkpoint, files, folder)
    _copy_weights(checkpoint, files, folder)
    return 0


def _copy_weights(checkpoint: Path, files: list[str], folder: Path) -> None:
    for name in files:
        shutil.copyfile(checkpoint / name, folder / name)
    if (checkpoint / INDEX).is_file():
        shutil.copyfile(checkpoint / INDEX, folder / INDEX)


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


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


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
