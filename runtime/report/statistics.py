"""Intervals of scores and of recovered gains.

An episode is one try at one held-out task, every subject tries the same tasks, and tasks are what is drawn at random; so gains
are compared by a bootstrap that resamples tasks and keeps each task's outcomes of all subjects together.
Sources: Wilson 1927 for a share; Efron and Tibshirani 1993, chapter 13, for the percentile interval.

Shapes: N tasks, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 4000
CHUNK = 500  # resamples computed at once: 500 x 10,000 tasks of indices are 40 MB
Z95 = 1.959963984540054
LARGEST_UNDEFINED_SHARE = 0.025  # of resamples in which the teacher gains nothing; beyond it the interval has no end


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float] | None:
        return None if self.low is None or self.high is None else [self.low, self.high]


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainGains:
    """What a domain's teacher and student gained over SFT."""

    teacher: Estimate  # teacher - SFT
    student: Estimate  # student - SFT
    recovered: Estimate  # (student - SFT) / (teacher - SFT)
    recovered_R: Floats  # the resampled ratios, NaN where the teacher gained nothing


def wilson(successes: float, count: int) -> Estimate:
    """A share and its Wilson interval, which stays inside [0, 1] and has a width even at 0 and 1."""
    share = successes / count
    center = (share + Z95**2 / (2 * count)) / (1 + Z95**2 / count)
    reach = Z95 / (1 + Z95**2 / count) * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    # At 0 and 1 the bound is the share itself, up to a rounding that would show as a whisker on the wrong side.
    return Estimate(value=share, low=max(0.0, min(share, center - reach)), high=min(1.0, max(share, center + reach)))


def domain_gains(sft: Sequence[float], teacher: Sequence[float], student: Sequence[float], seed: int) -> DomainGains:
    """Paired gains of one domain from the outcomes of the same tasks in the same order.

    Raises:
        ValueError: the three are not of one length, or empty.
    """
    if not len(sft) == len(teacher) == len(student) or not len(sft):
        raise ValueError(f"paired outcomes need the same tasks: {len(sft)}, {len(teacher)} and {len(student)} were given")
    teacher_N = np.asarray(teacher, dtype=np.float64) - np.asarray(sft, dtype=np.float64)
    student_N = np.asarray(student, dtype=np.float64) - np.asarray(sft, dtype=np.float64)
    generator = np.random.default_rng(seed)
    teacher_R, student_R = np.empty(RESAMPLES), np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, CHUNK):
        drawn_RN = generator.integers(0, len(sft), (CHUNK, len(sft)))
        teacher_R[start : start + CHUNK] = teacher_N[drawn_RN].mean(axis=1)
        student_R[start : start + CHUNK] = student_N[drawn_RN].mean(axis=1)
    recovered_R = _ratio(student_R, teacher_R)
    whole = _ratio(np.array([student_N.mean()]), np.array([teacher_N.mean()]))[0]
    return DomainGains(
        teacher=_estimate(float(teacher_N.mean()), teacher_R),
        student=_estimate(float(student_N.mean()), student_R),
        recovered=_estimate(float(whole), recovered_R),
        recovered_R=recovered_R,
    )


def mean_recovered(domains: Mapping[str, DomainGains]) -> Estimate:
    """The mean over domains of the recovered gain; domains are resampled independently.

    Not defined where a teacher of a domain gains nothing: leaving the domain out would flatter the student.
    """
    values = [gains.recovered.value for gains in domains.values()]
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return Estimate(value=None, low=None, high=None)
    draws_R = np.mean([gains.recovered_R for gains in domains.values()], axis=0)
    return _estimate(sum(defined) / len(defined), draws_R)


def _ratio(numerator_R: Floats, denominator_R: Floats) -> Floats:
    """NaN where the denominator is not positive: there is no gain to recover."""
    gains = denominator_R > 0
    return np.where(gains, numerator_R / np.where(gains, denominator_R, 1.0), np.nan)


def _estimate(value: float, draws_R: Floats) -> Estimate:
    if math.isnan(value):
        return Estimate(value=None, low=None, high=None)
    defined_R = draws_R[~np.isnan(draws_R)]
    if len(defined_R) < (1 - LARGEST_UNDEFINED_SHARE) * len(draws_R):
        return Estimate(value=value, low=None, high=None)
    low, high = np.percentile(defined_R, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))
