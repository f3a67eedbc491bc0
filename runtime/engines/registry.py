"""Engines by the name that a spec calls them."""

from pathlib import Path
from typing import Literal

from ..data.tokenizers import ChatTokenizer
from .protocol import Engine

EngineName = Literal["transformers"]


def open_engine(
    name: EngineName, folder: Path, tokenizer: ChatTokenizer, *, dtype: Literal["float32", "bfloat16"], policy_version: int = 0
) -> Engine:
    """Start an engine on a model folder.

    Raises:
        UserError: the folder or the machine does not suit the engine.
    """
    match name:
        case "transformers":
            from .transformers_engine import TransformersEngine

            return TransformersEngine(
                folder,
                tokenizer_digest=tokenizer.digest,
                pad_id=tokenizer.pad_id,
                invalid_ids=tokenizer.invalid_ids,
                num_tokens=len(tokenizer.hf),
                dtype=dtype,
                policy_version=policy_version,
            )
