"""Promises of the group-normalised advantages."""

import math

import pytest
from polymath.runtime.advantages import group_advantages, process_advantages


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


def test_process_credit_ranks_failures_among_themselves_and_leaves_successes_alone() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0]
    plain = group_advantages(rewards, [0] * 4)
    found = process_advantages(rewards, rewards, [0.1, 0.0, 0.5, 1.0], [0] * 4, 0.5)
    credit = [0.0, -math.sqrt(1.5), 0.0, math.sqrt(1.5)]  # of 0, 0.5 and 1; the success's own steps count for nothing
    assert found == pytest.approx([before + 0.5 * one for before, one in zip(plain, credit, strict=True) if before is not None])


def test_a_group_of_failures_learns_from_its_steps_alone() -> None:
    assert process_advantages([0.0, 0.0], [0.0, 0.0], [0.2, 0.8], [4, 4], 0.5) == pytest.approx([-0.5, 0.5])
    assert process_advantages([0.0, 0.0], [0.0, 0.0], [0.3, 0.1 + 0.2], [4, 4], 0.5) == [None, None]


@pytest.mark.parametrize("processes", [[0.9, 0.1, 0.5], [0.5, 0.5, 0.5]])
def test_one_failure_or_equal_steps_give_no_credit(processes: list[float]) -> None:
    one_failure = [1.0, 0.0, 1.0]
    assert process_advantages(one_failure, one_failure, processes, [0] * 3, 0.5) == group_advantages(one_failure, [0] * 3)
    failures = [0.0, 0.0, 1.0]
    equal = [0.7, 0.7, 0.1]
    assert process_advantages(failures, failures, equal, [0] * 3, 0.5) == group_advantages(failures, [0] * 3)


def test_a_group_of_successes_teaches_nothing_whatever_its_steps() -> None:
    assert process_advantages([1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0, 0], 0.5) == [None, None]


def test_where_only_failures_differ_a_success_of_the_same_reward_stays_at_zero() -> None:
    assert process_advantages([0.0] * 3, [0.0, 0.0, 1.0], [0.0, 1.0, 0.5], [0] * 3, 2.0) == pytest.approx([-2.0, 2.0, 0.0])


def test_process_groups_do_not_see_each_other_and_a_score_must_be_finite() -> None:
    alone = process_advantages([0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [3, 3], 0.5)
    assert process_advantages([0.0] * 4, [0.0] * 4, [0.0, 9.0, 1.0, 9.0], [3, 4, 3, 4], 0.5) == [alone[0], None, alone[1], None]
    with pytest.raises(ValueError, match=r"process score of sample 1 .*nan"):
        process_advantages([0.0, 1.0], [0.0, 1.0], [0.0, math.nan], [0, 0], 0.5)
