"""Promises of the group-normalised advantages."""

import math

import pytest
from polymath.runtime.advantages import group_advantages


def test_a_group_with_equal_rewards_teaches_nothing() -> None:
    assert group_advantages([1.0, 1.0, 1.0, 0.1 + 0.2, 0.3], [0, 0, 0, 1, 1]) == [None] * 5


def test_advantages_of_a_group_have_mean_zero_and_unit_spread() -> None:
    advantages = group_advantages([0.0, 5.0, 1.0, 5.0, 0.0, 5.0], [0, 7, 0, 7, 0, 7])
    assert advantages[1::2] == [None, None, None]
    group = [one for one in advantages[0::2] if one is not None]
    assert sum(group) == pytest.approx(0)
    assert math.sqrt(sum(one * one for one in group) / 3) == pytest.approx(1)


def test_groups_do_not_see_each_other() -> None:
    alone = group_advantages([0.0, 1.0], [3, 3])
    assert group_advantages([0.0, 100.0, 1.0, 200.0], [3, 4, 3, 4])[0::2] == alone


def test_a_reward_that_is_not_finite_names_its_sample() -> None:
    with pytest.raises(ValueError, match=r"sample 1 .*nan"):
        group_advantages([0.0, math.nan], [0, 0])
