"""Reading a served engine's scores: JSON of its answer to positions, as it comes."""

import json
from typing import Any

import pytest
from polymath.runtime.engines.completions import read_completions

POSITIONS, PIECE = 3_000, 65_536


def _answer(support: int) -> bytes:
    """An answer as vLLM writes it: a sequence with a support at each position."""
    entries = {str(1000 + 37 * i): {"logprob": -0.1234567 - i, "rank": i + 1, "decoded_token": " word"} for i in range(support)}
    choice = {"index": 0, "text": "", "token_ids": [1], "prompt_logprobs": [None, *[entries] * (POSITIONS - 1)]}
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize("support", [8, 72])
def test_reading_an_answer(benchmark: Any, support: int) -> None:
    body = _answer(support)
    benchmark.extra_info["bytes_per_position"] = len(body) / POSITIONS
    pieces = [body[start : start + PIECE] for start in range(0, len(body), PIECE)]
    benchmark(lambda: read_completions(iter(pieces), lambda *_: None))
