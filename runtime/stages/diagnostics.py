"""What distillation watches beside its loss, and the alarms on it. Nothing here is optimised.

What it does: per domain, from the rollouts, their length, outcome, reward and how many were cut off; at the watched tokens,
coverage, overlap, entropy and the gap between engine and trainer; now and then, whether both send tokens to the same experts.
All of it is known before the step moves a weight, so that an alarm can skip or stop it; every alarm that fires is an event of the
run. A domain that wrote nothing in a step has no numbers in it, and no alarm fires for it.
What it does not do: say what the numbers mean; `monitors.py` and docs/diagnostics.md do.

Shapes: N trained positions, M watched ones, D domains, T tokens of one sample, B rows, L positions, V vocabulary, H hidden width,
Y layers with experts, C experts that a token visits.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...specs import alarms as spec
from ...specs.diagnostics import ExitCode, UserError
from ..data.batch import Document
from ..jobs import JobContext
from ..launch.events import EventLog
from ..ledger import LedgerSample
from ..losses.shard import WholeVocabulary
from ..losses.watched import num_shared, watch
from ..monitors import MONITOR_OF_ALARM, TRAINED_SAMPLES, TRAINED_TOKENS, UPDATE_SKIPPED
from .on_policy import OnPolicyBatches, by_domain

if TYPE_CHECKING:
    from ..trainer.trainer import TrainedTokens

COVERAGE_BINS = 2000  # quantiles of a sum over ranks come from a histogram; a bin is 0.0005 wide

logger = logging.getLogger(__name__)


class WatchedTokens:
    """What is summed over watched tokens on every rank, and what follows from the sums."""

    def __init__(self, domains: Sequence[str], invalid_ids: frozenset[int], importance: tuple[float, float] | None = None) -> None:
        """`importance` bounds the trainer's probability over the engine's, where the loss leaves out the tokens outside."""
        self._domains, self._invalid_ids, self._importance = domains, invalid_ids, importance

    def sums(self, hidden_NH: Tensor, head_VH: Tensor, tokens: "TrainedTokens", shard: WholeVocabulary) -> dict[str, Tensor]:
        """Sums over the watched tokens of a micro-batch; there may be none."""
        num_domains, watched_N = len(self._domains), tokens.extras["watched"]
        domain_M = tokens.extras["domain"][watched_N]
        none_N0 = tokens.labels_N.new_empty((len(tokens.labels_N), 0))  # of a loss without a support
        seen = watch(
            hidden_NH[watched_N],
            head_VH,
            tokens.extras.get("support_ids", none_N0)[watched_N],
            tokens.labels_N[watched_N],
            self._invalid_ids,
            shard,
        )
        log_ratio_M = seen.logprob_M - tokens.extras["rollout_logprobs"][watched_N]
        gap_M = log_ratio_M.abs()
        is_domain_DM = torch.arange(num_domains, device=domain_M.device).unsqueeze(1) == domain_M
        none_D = gap_M.new_zeros(num_domains)
        bins_M = (seen.coverage_M.clamp(0, 1) * COVERAGE_BINS).long().clamp(0, COVERAGE_BINS - 1)  # NaN counts as some bin
        histogram = torch.bincount(domain_M * COVERAGE_BINS + bins_M, minlength=num_domains * COVERAGE_BINS)
        sums = {
            "watched": torch.bincount(domain_M, minlength=num_domains),
            "coverage_histogram": histogram.view(num_domains, COVERAGE_BINS),
            "coverage": none_D.index_add(0, domain_M, seen.coverage_M),
            "top_k_overlap": none_D.index_add(0, domain_M, seen.overlap_M),
            "entropy": none_D.index_add(0, domain_M, seen.entropy_M),
            "logprob_gap": none_D.index_add(0, domain_M, gap_M),
            "logprob_gap_max": F.pad(torch.where(is_domain_DM, gap_M, 0.0), (0, 1)).amax(dim=1),
        }
        if self._importance is not None:
            low, high = self._importance
            is_outside_M = (log_ratio_M.exp() < low) | (log_ratio_M.exp() > high)
            sums["outside_importance"] = none_D.index_add(0, domain_M, is_outside_M.to(none_D.dtype))
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the sums over all ranks: coverage over all domains, and everything by domain."""
        histogram, coverage = sums["coverage_histogram"], sums["coverage"]
        metrics = coverage_metrics(histogram.sum(dim=0), coverage.sum())
        for place, domain in enumerate(self._domains):
            watched = sums["watched"][place].item()
            if not watched:
                continue
            own = coverage_metrics(histogram[place], coverage[place])
            metrics |= {f"{name}.{domain}": value for name, value in own.items()}
            for name in ("top_k_overlap", "entropy", "logprob_gap", "outside_importance"):
                if name in sums:
                    metrics[f"{name}.{domain}"] = sums[name][place].item() / watched
            metrics[f"logprob_gap_max.{domain}"] = sums["logprob_gap_max"][place].item()
        return metrics


def coverage_metrics(histogram: Tensor, total: Tensor) -> dict[str, float]:
    """Mean and 5 % quantile of coverage over some watched tokens; 1 where there are none."""
    count = histogram.sum().item()
    if not count:
        return {"coverage_mean": 1.0, "coverage_p05": 1.0}
    cumulative = histogram.double().cumsum(0)
    wanted = 0.05 * count
    place = int((cumulative < wanted).sum())
    before = cumulative[place - 1].item() if place else 0.0
    within = (wanted - before) / histogram[place].item()  # as if a bin's tokens were spread evenly over it
    return {"coverage_mean": total.item() / count, "coverage_p05": (place + within) / COVERAGE_BINS}


def domain_metrics(samples: Sequence[LedgerSample]) -> dict[str, float]:
    """What the rollouts of every domain were like, and how much of them is trained on."""
    metrics: dict[str, float] = {}
    for domain, own in by_domain(samples):
        written = [sample.num_written for sample in own]
        found = {
            "reward_mean": sum(sample.reward for sample in own) / len(own),
            "forced": sum(sample.status == "FORCED" for sample in own) / len(own),
            "truncated": sum(sample.status == "TRUNCATED" for sample in own) / len(own),
            "written_mean": sum(written) / len(own),
            "written_max": float(max(written)),
            TRAINED_TOKENS: float(sum(written)),
            TRAINED_SAMPLES: float(sum(count > 0 for count in written)),
        }
        metrics |= {f"{name}.{domain}": value for name, value in found.items()}
    return metrics


def routing_metrics(
    samples: Sequence[LedgerSample], domains: Sequence[str], batches: OnPolicyBatches, sequence_tokens: int
) -> dict[str, float]:
    """Whether engine and trainer, with the same weights, send the tokens of some rollouts to the same experts. Collective.

    Returns:
        By domain: the share of experts that both choose, and the share of (token, layer) pairs whose sets are equal.
    """
    engine, trainer = batches.actors.engine, batches.trainer
    documents = []
    for sample, choices_TYC in zip(samples, engine.expert_choices([sample.ids for sample in samples]), strict=True):
        length = len(sample.ids) - 1  # a row holds no last token: it predicts nothing
        extras = {"choices": choices_TYC[:-1], "domain": torch.full((length,), domains.index(sample.domain))}
        documents.append(Document(ids=sample.ids, written=sample.written, weight_T=torch.ones(length), extras=extras))
    sums = {name: torch.zeros(len(domains)) for name in ("alike", "equal", "pairs")}
    for micro, trainer_BLYC in trainer.expert_choices(batches.pack(documents, sequence_tokens)):
        real_BL = micro.loss_weight_BL != 0
        domain_N = micro.extras["domain"][real_BL]
        engine_NYC = micro.extras["choices"][real_BL]
        shared_NY = num_shared(engine_NYC, trainer_BLYC[real_BL])
        layers, visited = engine_NYC.shape[1:]
        sums["alike"].index_add_(0, domain_N, shared_NY.sum(dim=1) / visited)
        sums["equal"].index_add_(0, domain_N, (shared_NY == visited).sum(dim=1).float())
        sums["pairs"].index_add_(0, domain_N, torch.full(domain_N.shape, float(layers)))
    sums = trainer.reduced(sums)
    metrics: dict[str, float] = {}
    for place, domain in enumerate(domains):
        if pairs := sums["pairs"][place].item():
            metrics[f"routing_agreement.{domain}"] = sums["alike"][place].item() / pairs
            metrics[f"routing_equal.{domain}"] = sums["equal"][place].item() / pairs
    return metrics


class Alarms:
    """The spec's alarms, looked at once per step."""

    def __init__(self, context: JobContext, settings: spec.Alarms, domains: Sequence[str]) -> None:
        alarms = {name: getattr(settings, name) for name in MONITOR_OF_ALARM}
        self._alarms = {name: alarm for name, alarm in alarms.items() if alarm is not None}
        self._context, self._domains = context, domains
        self._firing: set[tuple[str, str]] = set()  # the log is told when a number turns bad, not at every step that it stays so

    def judge(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """What the alarms change of a step's metrics: a skipped update trains on nothing. Every rank must see the same metrics.

        Raises:
            UserError: an alarm says stop.
        """
        fired = [(name, domain) for name in self._alarms for domain in self._domains if self._fires(name, domain, step, metrics)]
        stops: list[UserError] = []
        for name, domain in fired:
            alarm, monitor = self._alarms[name], MONITOR_OF_ALARM[name]
            value = metrics[f"{monitor.metric}.{domain}"]
            side, threshold = threshold_of(alarm)
            message = f"step {step}, domain `{domain}`: alarm `{name}`, {value:.4g} is {side} {threshold:g}. {monitor.means}"
            self._record(step=step, alarm=name, domain=domain, value=value, side=side, threshold=threshold, action=alarm.action)
            if alarm.action == "stop":
                stops.append(UserError(message, exit_code=ExitCode.FAILED, fix=monitor.remedy))
            elif (name, domain) not in self._firing and self._context.is_first_rank:
                logger.warning(message)
        self._firing = set(fired)
        if stops:
            raise stops[0]
        if not any(self._alarms[name].action == "skip" for name, _ in fired):
            return {}
        return {
            UPDATE_SKIPPED: 1.0,
            **{name: 0.0 for name in metrics if name.startswith((f"{TRAINED_TOKENS}.", f"{TRAINED_SAMPLES}."))},
        }

    def _fires(self, name: str, domain: str, step: int, metrics: Mapping[str, float]) -> bool:
        monitor = MONITOR_OF_ALARM[name]
        value = metrics.get(f"{monitor.metric}.{domain}")
        if value is None or (monitor.first_step_only and step > 1):
            return False
        side, threshold = threshold_of(self._alarms[name])
        return value < threshold if side == "below" else value > threshold

    def _record(self, **facts: Any) -> None:
        if self._context.is_first_rank:
            EventLog(self._context.run_dir).write("alarm", job=self._context.job.id, folder=self._context.job.folder, **facts)


def threshold_of(alarm: Any) -> tuple[str, float]:
    """Which side of its threshold an alarm fires on, and the threshold."""
    return ("below", alarm.below) if hasattr(alarm, "below") else ("above", alarm.above)
