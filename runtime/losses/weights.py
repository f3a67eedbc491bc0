"""What each token weighs. The weights of a global batch sum to 1, so a loss is `sum(weight * token_loss)` on any layout.

Counts are taken over the whole global batch, before it is spread over ranks and micro-batches.

Source: Agents-A1 (arXiv 2606.30616), objective of on-policy distillation, for the mean per sample, per domain, over domains;
Yu et al. 2025 (DAPO), section 3.3, for GRPO's mean over tokens.
"""

from collections import Counter
from collections.abc import Sequence


def sample_domain_weights(written: Sequence[int], domains: Sequence[str]) -> list[float]:
    """The weight of one written token of each sample: `1 / (active domains * samples of its domain * tokens it wrote)`.

    A sample that wrote nothing teaches nothing: it weighs 0 and is not counted. A domain is active if any of its samples counts.

    Args:
        written: tokens that the student wrote, per sample.
        domains: the domain of each sample.
    """
    samples = Counter(domain for count, domain in zip(written, domains, strict=True) if count)
    return [
        1.0 / (len(samples) * samples[domain] * count) if count else 0.0 for count, domain in zip(written, domains, strict=True)
    ]


def sample_mean_weights(written: Sequence[int]) -> list[float]:
    """The weight of one written token of each sample: `1 / (samples that wrote something * tokens it wrote)`, 0 of the others."""
    samples = sum(count > 0 for count in written)
    return [1.0 / (samples * count) if count else 0.0 for count in written]


def token_mean_weights(written: Sequence[int], trained: Sequence[bool]) -> list[float]:
    """The weight of one written token of each sample: `1 / (all written tokens of the trained samples)`, 0 where not trained.

    With nothing to train every weight is 0.
    """
    total = sum(count for count, used in zip(written, trained, strict=True) if used)
    return [1.0 / total if used and count else 0.0 for count, used in zip(written, trained, strict=True)]
