"""Opens one engine of each implementation on the same small model, for the tests of what all of them promise."""

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, ChatTokenizer, load_tokenizer_folder
from polymath.runtime.engines.protocol import Engine
from polymath.runtime.engines.shared import write_weights
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.vllm import connect, start_server, start_worker
from polymath.runtime.engines.vllm_launch import EngineSettings
from polymath.runtime.engines.weights import Weights
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from weight_streams import weights_of

CONTEXT_TOKENS = 96
SHAPE: Mapping[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "max_position_embeddings": 128, "norm_topk_prob": True,
    "initializer_range": 0.3,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Models:
    """Two models of one shape, `first` and `second`, as folders and in transformers' hands."""

    tokenizer: ChatTokenizer
    folders: Mapping[str, Path]
    reference: Mapping[str, Any]

    def logprobs(self, name: str, ids: list[int]) -> Tensor:
        """float32 [T, V] of one plain forward pass."""
        with torch.no_grad():
            return self.reference[name](torch.tensor([ids])).logits[0].log_softmax(-1)

    def weights(self, name: str) -> Weights:
        return weights_of(self.reference[name])


def make_models(root: Path, *, tied: bool) -> Models:
    tokenizer = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:tiny-words"])
    folders, reference = {}, {}
    for seed, name in enumerate(("first", "second")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = Qwen3MoeConfig(**SHAPE, vocab_size=tokenizer.vocabulary_size, tie_word_embeddings=tied)
            reference[name] = Qwen3MoeForCausalLM(config).eval()
        folders[name] = root / name
        reference[name].save_pretrained(folders[name])
        tokenizer.save(folders[name])
    return Models(tokenizer=tokenizer, folders=folders, reference=reference)


def settings_of(folder: Path) -> EngineSettings:
    return EngineSettings(
        folder=folder,
        dtype="float32",
        context_tokens=CONTEXT_TOKENS,
        sequences=64,
        batched_tokens=512,
        cache_bytes=2**26,
        tensor=1,
    )


class Subject:
    """An engine under test, and how it is given weights."""

    def __init__(self, engine: Engine, models: Models, root: Path) -> None:
        self.engine, self._models, self._root = engine, models, root

    def load(self, name: str, policy_version: int) -> None:
        """As a training job does it: a stream of full tensors under transformers' names."""
        weights = self._models.weights(name)
        if isinstance(self.engine, TransformersEngine):
            self.engine.load_weights(weights, policy_version=policy_version)
            return
        folder = self._root / "weights"
        write_weights(weights, folder)
        self.engine.reload(folder, policy_version=policy_version)  # type: ignore[attr-defined]


def lacks(kind: str) -> str | None:
    """Why an implementation cannot be tried here."""
    if kind != "embedded" and importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here: make test-vllm"
    return None


def open_subject(kind: str, models: Models, root: Path, cleanup: ExitStack) -> Subject:
    folder, tokenizer = models.folders["first"], models.tokenizer
    if kind == "embedded":
        engine: Engine = TransformersEngine(
            folder,
            tokenizer_digest=tokenizer.digest,
            pad_id=tokenizer.pad_id,
            invalid_ids=tokenizer.invalid_ids,
            num_tokens=len(tokenizer.hf),
        )
    else:
        start = {"process": start_worker, "http": start_server}[kind]
        copy = start(settings_of(folder), root / "engine.log", cleanup)
        copy.wait()
        engine = connect(copy.facts, folder, tokenizer)
    cleanup.callback(engine.close)
    return Subject(engine, models, root)
