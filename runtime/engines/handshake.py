"""Whether a server is what it is taken for: its name, its tokenizer, and the model behind it.

The tokenizer: texts must become the same ids there as here. They are words of several scripts, the name of every control token, a
conversation in the chat template, and the whole vocabulary written out, so that a token, a merge, a control token or a
template that differs gives other ids somewhere.
The model: fixed sequences of ids, the canary, must get the log-probabilities that the checkpoint itself gives. The same canary is
asked again after every batch that was scored, before the batch is published.
What it does not do: prove more than it asks. Weights that differ by less than the number format's rounding pass.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ..data.tokenizers import ChatTokenizer
from .endpoint import ServiceFailure, Unreadable, read_json
from .protocol import Engine
from .served_engine import ServedEngine
from .transformers_engine import LARGEST_PARAMETERS, TransformersEngine, count_parameters

MOST_BYTES = 1 << 24
TOKENS_AT_ONCE = 4_096  # of the vocabulary, written out in one text
CANARIES, CANARY_TOKENS = 4, 32
TEXTS = (
    "The quick brown fox jumps over the lazy dog; 3.14159 of 1,024 times, isn't it?",
    "def f(x):\n    return {'a': [x ** 2, \"b\"]}\t# 行 комментарий 🙂\r\n\n\n",
    "naïve façade, Straße, 漢字かな交じり文, עברית, العربية, हिन्दी, Ελληνικά",
)
CONVERSATION: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And then?"},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far a canary's log-probabilities may be from the checkpoint's."""

    mean: float
    largest: float


# float32: two engines differ by 2e-6 here. bfloat16: a token's experts may be others, so that single tokens say little; a mean of
# 0.055 was the largest of a random model, whose experts are close to one another.
TOLERANCES = {"float32": Tolerance(mean=1e-4, largest=1e-3), "bfloat16": Tolerance(mean=0.1, largest=float("inf"))}


class Canary:
    """Sequences of ids, and what the right model says of them."""

    def __init__(self, tokenizer: ChatTokenizer, expected: Sequence[Tensor], dtype: Literal["float32", "bfloat16"]) -> None:
        self.sequences, self.expected, self.tolerance = canary_sequences(tokenizer), expected, TOLERANCES[dtype]

    @classmethod
    def of_checkpoint(cls, folder: Path, tokenizer: ChatTokenizer, dtype: Literal["float32", "bfloat16"], what: str) -> "Canary":
        """What a checkpoint's own weights say.

        Raises:
            UserError: exit code 5; the checkpoint is too large to be asked in this process.
        """
        if (parameters := count_parameters(folder)) > LARGEST_PARAMETERS:
            raise UserError(
                f"{what} cannot be proved to be its checkpoint: {folder} has {parameters / 1e9:.1f} billion parameters, and a "
                f"checkpoint of at most {LARGEST_PARAMETERS / 1e9:.0f} billion can be asked beside it",
                exit_code=ExitCode.UNFIT,
                fix="leave it out of `engines.teachers`: an engine that the launch starts reads the checkpoint itself",
            )
        engine = TransformersEngine(
            folder,
            tokenizer_digest=tokenizer.digest,
            pad_id=tokenizer.pad_id,
            invalid_ids=(),
            num_tokens=len(tokenizer.hf),
            dtype=dtype,
        )
        return cls(tokenizer, engine.score_tokens(canary_sequences(tokenizer)), dtype)

    def difference(self, engine: Engine) -> str | None:
        """How an engine differs from the right model; None where it does not."""
        gap = (torch.cat(engine.score_tokens(self.sequences)) - torch.cat(list(self.expected))).abs()
        mean, largest = gap.mean().item(), gap.max().item()
        if mean <= self.tolerance.mean and largest <= self.tolerance.largest:
            return None
        return f"log-probabilities of {len(gap)} known tokens differ by {mean:.3g} in the mean and {largest:.3g} at most"


def canary_sequences(tokenizer: ChatTokenizer) -> list[list[int]]:
    """Fixed ids drawn from all that may be written: each depends on much of the model."""
    valid, draw = tokenizer.valid_ids, random.Random(0)
    return [draw.choices(valid, k=CANARY_TOKENS) for _ in range(CANARIES)]


def require_same_server(engine: ServedEngine, tokenizer: ChatTokenizer, context_tokens: int) -> None:
    """Refuse a server that does not serve the model, with the tokenizer and for as many tokens as are needed.

    Raises:
        UserError: exit code 5.
    """
    models = _ask(engine, f"{engine.client.endpoint.path}/models", None, "data")
    found = next((model for model in models if model.get("id") == engine.model), None)
    if found is None:
        names = ", ".join(str(model.get("id")) for model in models) or "nothing"
        raise unfit(engine, f"serves {names}, and not `{engine.model}`", "name the model that it serves")
    longest = found.get("max_model_len")
    if isinstance(longest, int) and longest <= context_tokens:
        raise unfit(engine, f"takes {longest} tokens, and {context_tokens + 1} are needed", "raise its --max-model-len")
    for what, question, expected in _questions(tokenizer):
        ids = _ask(engine, f"{engine.client.endpoint.root}/tokenize", {"model": engine.model, **question}, "tokens")
        if ids != expected:
            fix = "serve the checkpoint's own folder, tokenizer and chat template included"
            raise unfit(engine, f"has another tokenizer: {what} becomes {_differing(ids, expected)}", fix)


def unfit(engine: ServedEngine, message: str, fix: str) -> UserError:
    """A server that is not taken."""
    return UserError(f"{engine.owner} at {engine.client.endpoint} {message}", exit_code=ExitCode.UNFIT, fix=fix)


def _ask(engine: ServedEngine, path: str, question: Any, name: str) -> list[Any]:
    """A list of an answer, by its name."""

    def read(chunks: Iterator[bytes]) -> list[Any]:
        answer = read_json(chunks)
        found = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise Unreadable(f"an answer without {name}: {str(answer)[:200]}")
        return found

    try:
        return engine.client.ask(path, question, read, most_bytes=MOST_BYTES)
    except ServiceFailure as failure:
        fix = "start it, or mend the URL, the key or the model's name"
        raise unfit(engine, f"cannot be asked for {path}: {failure}", fix) from failure


def _questions(tokenizer: ChatTokenizer) -> Iterator[tuple[str, dict[str, Any], list[int]]]:
    """What is asked about the tokenizer, and the right answers."""
    for text in (*TEXTS, "".join(tokenizer.control_texts)):
        yield f"the text {text[:24]!r}", _text(text), list(tokenizer.literal_ids(text))
    for start in range(0, len(tokenizer.hf), TOKENS_AT_ONCE):
        end = min(start + TOKENS_AT_ONCE, len(tokenizer.hf))
        text = tokenizer.decode(list(range(start, end)))
        yield f"the text of tokens {start} to {end - 1}", _text(text), list(tokenizer.literal_ids(text))
    text = tokenizer.template.text(CONVERSATION, (), generation_prompt=True)
    question = {"messages": list(CONVERSATION), "add_generation_prompt": True, "add_special_tokens": False}
    yield "a conversation in the chat template", question, list(tokenizer.literal_ids(text))


def _text(text: str) -> dict[str, Any]:
    return {"prompt": text, "add_special_tokens": False}


def _differing(found: Sequence[Any], expected: Sequence[int]) -> str:
    pairs = enumerate(zip(found, expected, strict=False))
    place = next((at for at, (one, right) in pairs if one != right), min(len(found), len(expected)))
    return f"{list(found[place : place + 4])} at its token {place}, and not {list(expected[place : place + 4])}"
