"""Near-duplicate search: what is found, what is left alone, and what it costs."""

import random

import pytest
from polymath.runtime.data.near_duplicates import NearDuplicates, shingles, signature, similarity

WORDS = [f"word{number}" for number in range(2_000)]


def text_of(rng: random.Random, length: int = 120) -> list[str]:
    return rng.choices(WORDS, k=length)


def jaccard(one: str, other: str) -> float:
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


@pytest.mark.parametrize("changed", (0, 2, 8, 20, 60))
def test_the_estimate_is_within_four_standard_errors_of_the_exact_similarity(changed):
    rng = random.Random(changed)
    for _ in range(20):
        words = text_of(rng)
        other = list(words)
        for place in rng.sample(range(len(words)), changed):
            other[place] = rng.choice(WORDS)
        exact = jaccard(" ".join(words), " ".join(other))
        estimate = similarity(signature(" ".join(words)), signature(" ".join(other)))
        assert abs(estimate - exact) <= 4 * (exact * (1 - exact) / 128) ** 0.5 + 1e-9


def test_a_text_with_one_word_changed_is_found_and_a_fresh_one_is_not():
    rng = random.Random(7)
    index = NearDuplicates(threshold=0.8)
    originals = [text_of(rng) for _ in range(300)]
    for number, words in enumerate(originals):
        assert index.is_new(str(number), " ".join(words))
    for number, words in enumerate(originals):
        changed = list(words)
        changed[rng.randrange(len(words))] = "other"
        assert [match.key for match in index.find(" ".join(changed))] == [str(number)]
    assert not any(index.find(" ".join(text_of(rng))) for _ in range(300))


def test_case_and_punctuation_make_no_difference_and_short_questions_do_not_run_together():
    index = NearDuplicates(threshold=0.8)
    index.add("a", "search friend of boss of ada")
    assert index.find("Search: friend of boss, of ADA!")[0].similarity == 1.0
    assert not index.find("search friend of boss of alan")


def test_empty_texts_are_the_same_text():
    index = NearDuplicates()
    index.add("a", "")
    assert index.find(" ... ")[0].key == "a"


def test_a_long_text_costs_no_more_memory_than_a_short_one():
    index = NearDuplicates()
    index.add("long", " ".join(random.Random(1).choices(WORDS, k=100_000)))
    assert index._signatures["long"].nbytes == 512
