"""The engines of a job, by the name that a spec calls them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ...specs.machine import Engines, Precision
from ..data.tokenizers import ChatTokenizer
from ..jobs import JobContext
from .protocol import Engine

EngineRole = Literal["rollout", "scorer"]


def open_engines(context: JobContext, role: EngineRole, folders: Mapping[str, Path], tokenizer: ChatTokenizer) -> dict[str, Engine]:
    """An engine of a role for each named model folder; they are closed with the job. Collective.

    Raises:
        UserError: a folder or the machine does not suit the engine.
    """
    engines, dtype = context.setting("engines", Engines), context.setting("precision", Precision).compute
    opened: dict[str, Engine] = {}
    match getattr(engines, role):
        case "transformers":
            from .transformers_engine import TransformersEngine

            for name, folder in folders.items():
                opened[name] = TransformersEngine(
                    folder,
                    tokenizer_digest=tokenizer.digest,
                    pad_id=tokenizer.pad_id,
                    invalid_ids=tokenizer.invalid_ids,
                    num_tokens=len(tokenizer.hf),
                    dtype=dtype,
                )
        case "vllm":
            from .vllm import open_vllm

            opened |= open_vllm(context, role, folders, tokenizer)
    for engine in opened.values():
        context.cleanup.callback(engine.close)
    return opened
