"""Group-normalised advantages for GRPO.

What it does: turns the rewards of the samples of one prompt into one advantage per sample.
What it does not do: weight tokens, clip ratios, or decide what an equal group costs; `stages/grpo.py` does that.

Source: Shao et al. 2024 (DeepSeekMath), section 4.1; groups without spread teach nothing: Yu et al. 2025 (DAPO), section 3.2.
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
    members: dict[int, list[int]] = defaultdict(list)
    for sample, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        if not math.isfinite(reward):
            raise ValueError(f"the reward of sample {sample} (group {group}) is {reward}")
        members[group].append(sample)

    advantages: list[float | None] = [None] * len(rewards)
    for samples in members.values():
        mean = math.fsum(rewards[sample] for sample in samples) / len(samples)
        spread = math.sqrt(math.fsum((rewards[sample] - mean) ** 2 for sample in samples) / len(samples))
        if spread > SPREAD_FLOOR:
            for sample in samples:
                advantages[sample] = (rewards[sample] - mean) / spread
    return advantages
