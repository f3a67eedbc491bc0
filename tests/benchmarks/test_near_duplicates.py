"""Near-duplicate search: the signature of a long text, and looking a question up among many. `make bench` prints the table."""

import random
from typing import Any

import pytest
from polymath.runtime.data.near_duplicates import NearDuplicates, signature

pytest.importorskip("pytest_benchmark")

WORDS = [f"word{number}" for number in range(5_000)]


def drawn(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


@pytest.mark.parametrize("words", [30, 34_000])
def test_signature(benchmark: Any, words: int) -> None:
    """34,000 words are about the 45,000 tokens of the report's mean trajectory."""
    text = drawn(random.Random(0), words)
    benchmark.group = "near duplicates"
    benchmark(signature, text)


def test_find_among_ten_thousand(benchmark: Any) -> None:
    rng, index = random.Random(0), NearDuplicates()
    for number in range(10_000):
        index.add(str(number), drawn(rng, 30))
    asked = drawn(rng, 30)
    benchmark.group = "near duplicates"
    assert benchmark(index.find, asked) == []
