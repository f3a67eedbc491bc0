"""From the values of `student.distill.loss` to the losses, scores and weights that they name.

Shapes: N trained positions, H hidden width, V vocabulary, U valid ids, T tokens of one sample, W tokens it wrote, K tokens of the
support.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ...specs.distillation import Distill, DistillLoss
from ..engines.answers import unsound_logprobs
from ..engines.protocol import Engine
from ..losses import subset, vocabulary
from ..losses.shard import WHOLE, WholeVocabulary
from ..losses.weights import sample_domain_weights, sample_mean_weights, token_mean_weights
from ..rollouts import Trajectory
from .on_policy import predicts_written

if TYPE_CHECKING:
    from ..trainer.trainer import TrainedTokens


def token_loss(
    loss: DistillLoss,
    hidden_NH: Tensor,
    head_VH: Tensor,
    tokens: "TrainedTokens",
    valid_ids_U: Tensor,
    shard: WholeVocabulary = WHOLE,
) -> Tensor:
    """loss_N of each written token, from what `score` and the rollout left at it."""
    extras = tokens.extras
    if loss.estimator == "sampled" and loss.divergence == "forward_kl":
        return vocabulary.cross_entropy(hidden_NH, head_VH, tokens.labels_N, extras["rollout_logprobs"], shard)
    if loss.estimator == "sampled":
        scores = (extras["teacher_logprobs"], extras["rollout_logprobs"])
        return vocabulary.policy_gradient(hidden_NH, head_VH, tokens.labels_N, *scores, loss.importance, shard)
    logprobs = extras["support_logprobs"]
    if loss.support.source == "full":
        return vocabulary.full_loss(hidden_NH, head_VH, valid_ids_U.to(head_VH.device), logprobs, loss.divergence, shard)
    compute = vocabulary.bucket_loss if loss.tail == "bucket" else subset.token_loss
    return compute(hidden_NH, head_VH, extras["support_ids"], logprobs, loss.divergence, shard)


def score(
    settings: Distill, teacher: str, engine: Engine, trajectories: Sequence[Trajectory], valid_ids_U: Tensor
) -> list[dict[str, Any]]:
    """What a teacher says of each trajectory's written tokens, as fields of `LedgerSample`.

    Raises:
        UserError: it said what no engine may say.
    """
    loss, sequences = settings.loss, [one.ids for one in trajectories]
    masks = [predicts_written(one.written) for one in trajectories]
    if loss.estimator == "sampled" and settings.rollouts == "teacher":
        return [{"teacher": teacher} for _ in trajectories]  # who wrote a token has told its log-probability
    if loss.estimator == "sampled":
        found = [logprobs_T[mask_T] for logprobs_T, mask_T in zip(engine.score_tokens(sequences), masks, strict=True)]
        for logprobs_W in found:
            require_sound_logprobs(teacher, logprobs_W)
        return [{"teacher": teacher, "teacher_logprobs_W": logprobs_W} for logprobs_W in found]
    scores: list[dict[str, Any]] = []
    is_full = loss.support.source == "full"
    for top, mask_T in zip(engine.score_top_k(sequences, loss.support.top_k or len(valid_ids_U)), masks, strict=True):
        require_sound_support(teacher, top.ids_TK, top.logprobs_TK)
        ids_WK, logprobs_WK = top.ids_TK[mask_T], top.logprobs_TK[mask_T]
        if is_full:
            ids_WK, order_WK = ids_WK.sort(dim=-1)
            if not (ids_WK == valid_ids_U).all():
                raise _unsound(teacher, "scored other tokens than those that the assistant may write")
            scores.append({"teacher": teacher, "support_logprobs_WK": logprobs_WK.gather(1, order_WK)})
        else:
            scores.append({"teacher": teacher, "support_ids_WK": ids_WK, "support_logprobs_WK": logprobs_WK})
    return scores


def unmeasured(settings: Distill) -> tuple[str, ...]:
    """What is watched elsewhere and means nothing here, by the beginning of a metric's name."""
    without_support = ("coverage", "top_k_overlap") if settings.loss.support.source == "full" else ()
    return (*without_support, *(("logprob_gap",) if settings.rollouts == "teacher" else ()))


def importance_bounds(loss: DistillLoss) -> tuple[float, float] | None:
    """Between which ratios of the trainer's to the engine's probability a token counts; None where the loss has no bounds."""
    return loss.importance if loss.estimator == "sampled" and loss.divergence == "reverse_kl" else None


def weights(loss: DistillLoss, written: Sequence[int], domains: Sequence[str]) -> list[float]:
    """The weight of one written token of each sample; all tokens' weights sum to 1."""
    if loss.normalize == "domain":
        return sample_domain_weights(written, domains)
    if loss.normalize == "sample":
        return sample_mean_weights(written)
    return token_mean_weights(written, [True] * len(written))


def require_sound_support(teacher: str, ids_TK: Tensor, logprobs_TK: Tensor) -> None:
    """Refuse what a teacher's engine must never say, before it is published in the ledger.

    Raises:
        UserError: an id occurs twice in one support, or a log-probability is not a finite number of at most 0.
    """
    ascending_TK = ids_TK.sort(dim=-1).values
    if (ascending_TK[:, 1:] == ascending_TK[:, :-1]).any():
        raise _unsound(teacher, "named one token twice in a support")
    require_sound_logprobs(teacher, logprobs_TK)


def require_sound_logprobs(teacher: str, logprobs: Tensor) -> None:
    """Refuse log-probabilities that are none.

    Raises:
        UserError: one is not a finite number of at most 0.
    """
    if unsound_logprobs(logprobs).numel():
        raise _unsound(teacher, "gave a log-probability that is not a finite number of at most 0")


def _unsound(teacher: str, problem: str) -> UserError:
    return UserError(
        f"the engine of teacher `{teacher}` {problem}; nothing of this batch was trained on",
        exit_code=ExitCode.FAILED,
        fix="check the teacher's weights for NaN and its engine's version; launch again to roll the batch out anew",
    )
