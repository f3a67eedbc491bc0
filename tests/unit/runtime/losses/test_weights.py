"""Promises of the token weights of a global batch."""

import random

import pytest
from polymath.runtime.losses.weights import sample_domain_weights, sample_mean_weights, token_mean_weights


def test_the_weighted_sum_is_the_mean_per_sample_then_per_domain_then_over_active_domains() -> None:
    written, domains = [2, 3, 1], ["search", "search", "tools"]
    losses = [[1.0, 3.0], [6.0, 0.0, 3.0], [10.0]]
    weights = sample_domain_weights(written, domains)
    total = sum(weight * loss for weight, sample in zip(weights, losses, strict=True) for loss in sample)
    search, tools = (2.0 + 3.0) / 2, 10.0
    assert total == pytest.approx((search + tools) / 2)


def test_weights_of_a_batch_sum_to_one() -> None:
    written, domains = [5, 1, 0, 7, 2], ["a", "b", "b", "a", "c"]
    weights = sample_domain_weights(written, domains)
    assert sum(weight * count for weight, count in zip(weights, written, strict=True)) == pytest.approx(1)


def test_a_sample_that_wrote_nothing_and_its_domain_are_not_counted() -> None:
    assert sample_domain_weights([4, 0, 0], ["a", "a", "b"]) == [0.25, 0.0, 0.0]
    assert sample_domain_weights([0], ["a"]) == [0.0]


def test_the_value_does_not_depend_on_the_spread_over_ranks_and_micro_batches() -> None:
    draw = random.Random(0)
    samples = [(draw.randrange(1, 9), draw.choice("abc")) for _ in range(24)]
    losses = [[draw.random() for _ in range(written)] for written, _ in samples]
    weights = sample_domain_weights([written for written, _ in samples], [domain for _, domain in samples])

    def value(parts: list[list[int]]) -> float:
        return sum(sum(weights[sample] * loss for sample in part for loss in losses[sample]) for part in parts)

    whole = value([list(range(24))])
    order = list(range(24))
    draw.shuffle(order)
    for size in (1, 5, 12):
        assert value([order[start : start + size] for start in range(0, 24, size)]) == pytest.approx(whole)


def test_the_mean_per_sample_counts_those_that_wrote_something() -> None:
    assert sample_mean_weights([4, 0, 1]) == [0.125, 0.0, 0.5]
    assert sample_mean_weights([0, 0]) == [0.0, 0.0]


def test_token_mean_counts_only_trained_samples() -> None:
    assert token_mean_weights([3, 5, 1], [True, False, True]) == [0.25, 0.0, 0.25]


def test_nothing_to_train_is_a_defined_batch_of_zero_weights() -> None:
    assert token_mean_weights([3, 5], [False, False]) == [0.0, 0.0]
    assert token_mean_weights([0], [True]) == [0.0]
