"""Intervals: what they promise on cases whose answer is known."""

import numpy as np
import pytest
from polymath.runtime.report.statistics import domain_gains, mean_recovered, wilson


def outcomes(solved: int, count: int, seed: int) -> list[float]:
    shuffled = np.random.default_rng(seed).permutation([1.0] * solved + [0.0] * (count - solved))
    return shuffled.tolist()


def test_a_student_that_equals_its_teacher_recovers_exactly_everything_on_every_resample() -> None:
    sft, teacher = outcomes(500, 1000, 1), outcomes(900, 1000, 2)
    recovered = domain_gains(sft, teacher, teacher, seed=3).recovered
    assert (recovered.value, recovered.low, recovered.high) == (1.0, 1.0, 1.0)


def test_a_student_that_equals_sft_recovers_nothing() -> None:
    sft, teacher = outcomes(500, 1000, 1), outcomes(900, 1000, 2)
    recovered = domain_gains(sft, teacher, sft, seed=3).recovered
    assert (recovered.value, recovered.low, recovered.high) == (0.0, 0.0, 0.0)


def test_half_of_the_gain_is_a_half_inside_its_interval() -> None:
    sft, teacher = [0.0] * 400, [1.0] * 400
    gains = domain_gains(sft, teacher, [0.0, 1.0] * 200, seed=3)
    assert gains.recovered.value == 0.5 and gains.teacher.value == 1.0
    # The share of 400 coins: 1.96 * sqrt(0.25 / 400) = 0.049 on either side.
    assert gains.recovered.low == pytest.approx(0.451, abs=0.005)
    assert gains.recovered.high == pytest.approx(0.549, abs=0.005)


def test_pairing_narrows_the_interval() -> None:
    sft = outcomes(500, 1000, 1)
    teacher = [1.0] * 1000
    same_tasks = [max(one, float(place % 2)) for place, one in enumerate(sft)]
    shuffled = np.random.default_rng(5).permutation(same_tasks).tolist()
    paired, unpaired = (domain_gains(sft, teacher, student, seed=3).student for student in (same_tasks, shuffled))
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_a_teacher_that_gains_nothing_leaves_the_recovered_gain_undefined() -> None:
    sft = outcomes(500, 1000, 1)
    recovered = domain_gains(sft, sft, outcomes(900, 1000, 2), seed=3).recovered
    assert (recovered.value, recovered.low, recovered.high) == (None, None, None)


def test_a_teacher_whose_gain_may_be_chance_has_a_ratio_without_an_interval() -> None:
    gains = domain_gains(outcomes(50, 100, 1), outcomes(52, 100, 2), outcomes(52, 100, 4), seed=3)
    assert gains.recovered.value is not None and gains.recovered.interval is None


def test_the_mean_is_undefined_where_one_domain_is() -> None:
    sft, teacher = outcomes(500, 1000, 1), outcomes(900, 1000, 2)
    good, bad = domain_gains(sft, teacher, teacher, seed=3), domain_gains(sft, sft, teacher, seed=3)
    assert mean_recovered({"good": good, "again": good}).value == 1.0
    assert mean_recovered({"good": good, "bad": bad}).value is None


def test_one_seed_gives_one_interval() -> None:
    sft, teacher, student = outcomes(500, 1000, 1), outcomes(900, 1000, 2), outcomes(850, 1000, 3)
    first, second, other = (domain_gains(sft, teacher, student, seed=seed).recovered for seed in (3, 3, 4))
    assert first == second and first != other


def test_outcomes_of_different_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        domain_gains([0.0, 1.0], [1.0], [1.0, 1.0], seed=3)


@pytest.mark.parametrize(("solved", "low", "high"), [(0, 0.0, 0.0038), (500, 0.4691, 0.5309), (1000, 0.9962, 1.0)])
def test_wilson_is_as_tabulated_and_has_a_width_at_its_ends(solved: int, low: float, high: float) -> None:
    estimate = wilson(solved, 1000)
    assert estimate.low == pytest.approx(low, abs=1e-4) and estimate.high == pytest.approx(high, abs=1e-4)
