"""What the values of a distillation loss mean together: combinations without an effect, and forms that are known to be wrong.

Sources: Agents-A1 (arXiv 2606.30616), section 6, and Fu et al. (arXiv 2603.25562) for the renormalised support; the identities
behind each refusal are tests of `runtime/losses`.
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from ..specs.build import Path, Problem
from ..specs.distillation import Distill, DistillLoss
from ..specs.machine import Engines
from .compilation import mistake

PLAYS = {"reverse_kl": "student", "forward_kl": "teacher"}  # under whose distribution a divergence is a mean


EMBEDDED = "transformers"


def values_beside(loss: DistillLoss, vocabulary: int | None) -> int:
    """Log-probabilities that the loss holds for one token beside those of a support."""
    if loss.estimator == "sampled":
        return 2
    return (vocabulary or 0) if loss.support.source == "full" else 0


def reads_vocabulary(loss: DistillLoss) -> bool:
    """Whether the loss needs the student's logits of the whole vocabulary, some tokens at a time."""
    return loss.support.source == "full" or loss.tail == "bucket"


def is_scored(distill: Distill) -> bool:
    """Whether teachers read the trajectories again. The cross-entropy of what a teacher wrote needs no score."""
    return distill.rollouts == "student" or distill.loss.estimator == "exact"


def embedded_models(distill: Distill, engines: Engines, teachers: int) -> int:
    """Models that engines inside the trainer hold: whoever plays, and the teachers that nobody serves."""
    teachers = max(0, teachers - len(engines.teachers))
    if distill.rollouts == "teacher":
        return teachers * (engines.rollout == EMBEDDED)
    return (engines.rollout == EMBEDDED) + teachers * (engines.scorer == EMBEDDED)


def check_loss(distill: Distill, path: Path) -> Iterator[Problem]:
    """Everything that is wrong with `loss` whatever the model.

    Args:
        path: of the stage.
    """
    loss, here = distill.loss, (*path, "loss")
    if loss.estimator == "sampled" and loss.support.source == "teacher":
        detail = (
            "an advantage on the teacher's top-k is biased: tokens off the support get none, so the expected step raises all of "
            "them wherever the student differs from its teacher"
        )
        fix = "write `support: {source: full}`, or `estimator: exact`, which differentiates through the support"
        yield mistake("E0324", (*here, "estimator"), detail, fix)
        return
    if loss.estimator == "sampled":
        yield from _check_sampled(distill, path)
    else:
        yield from _without_effect(loss, here, "importance", "only `estimator: sampled` weights tokens by importance")
    if distill.rollouts == "teacher":
        yield from _unheard(distill, path, ("logprob_gap", "routing_agreement"), "the student's engine does not play")
        yield from _without_effect(distill, path, "max_policy_lag", "a teacher never changes")
    if loss.support.source == "teacher":
        yield from _check_support(loss, here)
        return
    what = "nothing is left over from the whole vocabulary" if loss.estimator == "exact" else "a written token has no support"
    if loss.support.top_k is not None:
        fix = "remove it (`top_k: null` where `extends` brings it), or write `source: teacher`"
        yield mistake("E0303", (*here, "support", "top_k"), "source `full` takes every valid token", fix, at_key=True)
    yield from _without_effect(loss, here, "tail", what)
    yield from _without_effect(loss.support, (*here, "support"), "renormalize", what)
    yield from _unheard(distill, path, ("coverage_p05", "top_k_overlap"), f"it is not measured: {what}")


def _unheard(distill: Distill, path: Path, names: tuple[str, ...], detail: str) -> Iterator[Problem]:
    """Alarms that could never fire."""
    for name in names:
        if getattr(distill.alarms, name) is not None:
            yield mistake("E0303", (*path, "alarms", name), detail, "remove it", at_key=True)


def _check_support(loss: DistillLoss, here: Path) -> Iterator[Problem]:
    if loss.support.top_k is None:
        fix = "add `top_k`, such as 64, or write `source: full`"
        yield mistake("E0203", (*here, "support"), "`top_k` is missing", fix, at_key=True)
    if not loss.support.renormalize and loss.tail == "bucket":
        detail = "with `tail: bucket` both sides are whole distributions already"
        yield mistake("E0303", (*here, "support", "renormalize"), detail, "remove it", at_key=True)
    elif not loss.support.renormalize:
        detail = "unnormalised, the loss is least where the student moved 63 % of the teacher's mass off the support"
        fix = "remove it, or count the rest with `tail: bucket`"
        yield mistake("E0326", (*here, "support", "renormalize"), detail, fix)


def _check_sampled(distill: Distill, path: Path) -> Iterator[Problem]:
    loss, here = distill.loss, (*path, "loss")
    wanted = PLAYS.get(loss.divergence)
    if wanted is None:
        detail = "Jensen-Shannon is a mean under the student and under its teacher; samples of one of them estimate half of it"
        yield mistake("E0325", (*here, "divergence"), detail, "`reverse_kl` or `forward_kl`, or `estimator: exact`")
        return
    if distill.rollouts != wanted:
        detail = f"`{loss.divergence}` is a mean under the {wanted}, and the {distill.rollouts} writes the samples"
        fix = f"write `rollouts: {wanted}`, or `estimator: exact`"
        yield mistake("E0325", (*here, "divergence"), detail, fix)
    if loss.divergence != "reverse_kl":
        yield from _without_effect(loss, here, "importance", "a cross-entropy is not weighted by importance")
        return
    low, high = loss.importance
    if not low <= 1 <= high:
        detail = f"[{low:g}, {high:g}] does not hold 1: no token of an unchanged student would count"
        yield mistake("E0205", (*here, "importance"), detail, "below and above 1, such as [0.5, 2.0]")
    for name in ("temperature", "top_p"):
        if getattr(distill.sampling, name) != 1:
            detail = "the policy gradient is a mean under the student itself, not under a sharpened or cut-off one"
            yield mistake("E0325", (*path, "sampling", name), detail, f"write `{name}: 1.0`, or `estimator: exact`")


def _without_effect(block: Any, path: Path, name: str, detail: str) -> Iterator[Problem]:
    """A value other than the default, where it would be ignored."""
    default = next(one.default for one in fields(block) if one.name == name)
    assert default is not MISSING
    if getattr(block, name) != default:
        yield mistake("E0303", (*path, name), detail, "remove it", at_key=True)
