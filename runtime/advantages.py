"""Group-normalised advantages for GRPO, from rewards alone or with process credit among the failures.

What it does: turns the rewards of the samples of one prompt into one advantage per sample.
What it does not do: weight tokens, clip ratios, or decide what an equal group costs; `stages/grpo.py` does that.

Sources: Shao et al. 2024 (DeepSeekMath), section 4.1; groups without spread teach nothing: Yu et al. 2025 (DAPO), section 3.2;
process credit that ranks failures only: Agents-A1 (arXiv 2606.30616), the tool teacher's PAPO-style advantage.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

SPREAD_FLOOR = 1e-6  # rewards are sums of a few products of small numbers; a smaller spread is rounding, not signal


def group_advantages(rewards: Sequence[float], groups: Sequence[int]) -> list[float | None]:
    """Normalise each group's rewards to mean 0 and standard deviation 1.

    Args:
        rewards: one per sample, finite.
        groups: the group (prompt) of each sample.

    Returns:
        One advantage per sample; None where all samples of the group have the same reward, so that there is nothing to learn.

    Raises:
        ValueError: a reward is not finite; the message names the sample, because a verifier is at fault.
    """
    advantages: list[float | None] = [None] * len(rewards)
    for samples in _members(rewards, groups, "reward"):
        normalised = _normalised([rewards[sample] for sample in samples])
        if normalised is not None:
            for sample, advantage in zip(samples, normalised, strict=True):
                advantages[sample] = advantage
    return advantages


def process_advantages(
    rewards: Sequence[float], outcomes: Sequence[float], processes: Sequence[float], groups: Sequence[int], weight: float
) -> list[float | None]:
    """`A_i = Z(reward)_i + weight * 1[outcome_i = 0] * Z_failed(process)_i`.

    The second Z is over the failures of the group alone: process credit ranks the ways to fail and never competes with success. A
    term whose values are all equal is zero.

    Args:
        outcomes: one per sample; 0 is a failure.
        processes: how right each sample's steps are, finite.
        weight: of the process credit.

    Returns:
        One advantage per sample; None where neither the rewards nor the failures' steps of the group differ.

    Raises:
        ValueError: a reward or a process score is not finite; the message names the sample.
    """
    advantages = group_advantages(rewards, groups)
    for samples in _members(processes, groups, "process score"):
        failed = [sample for sample in samples if outcomes[sample] == 0]
        credits = _normalised([processes[sample] for sample in failed])
        if credits is None:
            continue
        for sample in samples:  # the group has something to teach, so each of its samples has an advantage
            advantages[sample] = advantages[sample] or 0.0
        for sample, credit in zip(failed, credits, strict=True):
            advantages[sample] = (advantages[sample] or 0.0) + weight * credit
    return advantages


def _members(values: Sequence[float], groups: Sequence[int], what: str) -> list[list[int]]:
    """The samples of each group, all values being finite."""
    members: dict[int, list[int]] = defaultdict(list)
    for sample, (value, group) in enumerate(zip(values, groups, strict=True)):
        if not math.isfinite(value):
            raise ValueError(f"the {what} of sample {sample} (group {group}) is {value}")
        members[group].append(sample)
    return list(members.values())


def _normalised(values: Sequence[float]) -> list[float] | None:
    """Values at mean 0 and standard deviation 1; None where they do not differ."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / spread for value in values] if spread > SPREAD_FLOOR else None
