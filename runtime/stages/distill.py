"""Stage 3: multi-teacher domain-routed on-policy distillation with salient vocabulary alignment (method, section 6).

For every step:
  1. draw the same number of prompts from every domain;
  2. play them with a frozen snapshot of the student, each under its domain's limits; a prefix that a limit cut off is kept;
  3. route every trajectory to its domain's teacher, by the prompt's label alone: one teacher, no mixing, no fallback;
  4. the teacher reads the trajectory and names its top-k valid tokens where the student wrote each token;
  5. publish all of it in the ledger, and read it back;
  6. loss = reverse KL on that support, both sides renormalised on it: mean over a sample's written tokens, then over a domain's
     samples, then over the active domains, counted over the whole global batch.
The loss reads hidden states and the support's rows of the output head; no logits of the whole vocabulary are computed for it.
Coverage, the student's mass on the support, is watched at a sample of the tokens: nothing in the loss pushes mass back into it.
What else is watched, and the alarms: `diagnostics.py`.
What it does not do: use rewards (they are only reported), importance weights, temperatures or clipping, or train on old rollouts.

Source: Agents-A1 (arXiv 2606.30616), knowledge-action section.

Shapes: N positions with a weight, V vocabulary, H hidden width, D domains, T tokens of one sample, W tokens it
wrote, K tokens of the support.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import Distill, Domain
from ..data.batch import Document, PackedBatch
from ..data.tokenizers import load_tokenizer_folder, require_same_tokenizer
from ..engines.protocol import Engine
from ..jobs import JobContext
from ..ledger import LedgerSample
from ..losses import subset
from ..losses.weights import sample_domain_weights
from ..rollouts import RolloutRequest, Trajectory
from .diagnostics import Alarms, WatchedTokens, domain_metrics, routing_metrics
from .on_policy import Actors, OnPolicyBatches, by_domain, derived_seed, predicts_written, rollout_metrics, spread_over_written
from .training import train

if TYPE_CHECKING:
    from ..trainer.trainer import PolymathTrainer, TrainedTokens

ROUNDING_OF_LOGPROBS = 1e-3  # a probability of 1 may come out a little above it


class DistillStage:
    """The batches and the loss of distillation."""

    def __init__(
        self,
        settings: Distill,
        actors: Actors,
        batches: OnPolicyBatches,
        teachers: Mapping[str, Engine],
        routing: Mapping[str, str],
    ) -> None:
        self.settings = settings
        self.steps = settings.steps
        self._actors = actors
        self._batches = batches
        self._teachers = teachers
        self._routing = routing
        self._domains = tuple(actors.domains)
        self._metrics: dict[str, float] = {}
        self._active = 0
        self._step = 0
        self._watched = WatchedTokens(self._domains, actors.tokenizer.invalid_ids)
        self._alarms = Alarms(batches.context, settings.alarms, self._domains)

    def attach(self, trainer: "PolymathTrainer") -> None:
        """Take the student's weights from this trainer."""
        self._batches.attach(trainer)

    def next_batch(self, step: int) -> PackedBatch:
        """The rows of one step (from 1)."""
        due = step - 1
        samples = self._batches.batch(due, version=due, oldest_version=due, requests=self._requests(due), score=self._score)
        self._step = step
        self._metrics = {**rollout_metrics(samples), **domain_metrics(samples), **self._routing_metrics(step, samples)}
        self._active = len({sample.domain for sample in samples if sample.num_written})
        written = [sample.num_written for sample in samples]
        watched = watched_tokens(written, self.settings.loss.coverage_positions, derived_seed("coverage", step))
        return self._batches.pack(distill_documents(samples, self._domains, watched), self.settings.sequence_tokens)

    def _routing_metrics(self, step: int, samples: Sequence[LedgerSample]) -> dict[str, float]:
        diagnostics, engine = self.settings.diagnostics, self._actors.engine
        if (step - 1) % diagnostics.every_steps or not engine.capabilities.expert_choices:
            return {}
        first = [sample for _, own in by_domain(samples) for sample in own[: diagnostics.samples_per_domain]]
        self._batches.sync_engine(version=step - 1)
        return routing_metrics(first, self._domains, self._batches, self.settings.sequence_tokens)

    def _requests(self, index: int) -> list[RolloutRequest]:
        per_domain = self.settings.prompts_per_step.per_domain
        return [
            request
            for place, domain in enumerate(self._domains)
            for request in self._actors.requests(domain, index, per_domain, 1, place * per_domain)
        ]

    def _score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
        """Each trajectory's support, from the teacher of its domain."""
        scores: list[dict[str, Any]] = [{} for _ in trajectories]
        for name, teacher in self._teachers.items():
            routed = [number for number, one in enumerate(trajectories) if self._routing[one.domain] == name]
            supports = teacher.score_top_k([trajectories[number].ids for number in routed], self.settings.loss.support.top_k)
            for number, support in zip(routed, supports, strict=True):
                require_sound_support(name, support.ids_TK, support.logprobs_TK)
                mask_T = predicts_written(trajectories[number].written)
                scores[number] = {
                    "teacher": name,
                    "support_ids_WK": support.ids_TK[mask_T],
                    "support_logprobs_WK": support.logprobs_TK[mask_T],
                }
        return scores

    def hidden_loss(self, hidden_NH: Tensor, head_VH: Tensor, tokens: "TrainedTokens") -> tuple[Tensor, dict[str, Tensor]]:
        """Reverse KL of each written token on its teacher's support."""
        domain_N = tokens.extras["domain"]
        loss_N = subset.token_loss(hidden_NH, head_VH, tokens.extras["support_ids"], tokens.extras["support_logprobs"])
        per_domain_D = torch.zeros(len(self._domains), device=domain_N.device)
        return loss_N, {
            **self._watched.sums(hidden_NH, head_VH, tokens),
            "tokens": torch.bincount(domain_N, minlength=len(self._domains)),
            "loss": per_domain_D.index_add(0, domain_N, (tokens.weight_N * loss_N).detach()),
        }

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The step's metrics.

        Raises:
            UserError: an alarm fired, and the spec says stop.
        """
        metrics = dict(self._metrics)
        if sums:
            metrics |= self._watched.metrics(sums)
            for place, domain in enumerate(self._domains):
                if sums["tokens"][place]:
                    metrics[f"kl.{domain}"] = sums["loss"][place].item() * self._active  # undoes the mean over active domains
        return metrics | self._alarms.judge(self._step, metrics)

    def result(self) -> dict[str, Any]:
        """What distillation saw; `tokens` is what the control run of SFT is given as well."""
        return {"steps": self.steps, **self._batches.totals(self.steps)}


def watched_tokens(written: Sequence[int], most: int, seed: int) -> list[Tensor]:
    """bool [W] per sample: which tokens are watched. All of them, or `most` drawn from the whole batch without replacement.

    Args:
        written: tokens that the student wrote, per sample.
    """
    total = sum(written)
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:most]
    return list(torch.zeros(total, dtype=torch.bool).index_fill(0, chosen, True).split(list(written)))


def require_sound_support(teacher: str, ids_TK: Tensor, logprobs_TK: Tensor) -> None:
    """Refuse what a teacher's engine must never say, before it is published in the ledger.

    Raises:
        UserError: an id occurs twice in one support, or a log-probability is not a finite number of at most 0.
    """
    ascending_TK = ids_TK.sort(dim=-1).values
    if (ascending_TK[:, 1:] == ascending_TK[:, :-1]).any():
        problem = "named one token twice in a support"
    elif not (logprobs_TK.isfinite() & (logprobs_TK <= ROUNDING_OF_LOGPROBS)).all():
        problem = "gave a log-probability that is not a finite number of at most 0"
    else:
        return
    raise UserError(
        f"the engine of teacher `{teacher}` {problem}; nothing of this batch was trained on",
        exit_code=ExitCode.FAILED,
        fix="check the teacher's weights for NaN and its engine's version; launch again to roll the batch out anew",
    )


def distill_documents(samples: Sequence[LedgerSample], domains: Sequence[str], watched: Sequence[Tensor]) -> list[Document]:
    """One document per sample, weighted by sample and domain over the whole batch; `watched` says which tokens are watched."""
    weights = sample_domain_weights([sample.num_written for sample in samples], [sample.domain for sample in samples])
    documents = []
    for sample, weight, watched_W in zip(samples, weights, watched, strict=True):
        assert sample.support_ids_WK is not None and sample.support_logprobs_WK is not None
        mask_T = predicts_written(sample.written)
        extras = {
            "support_ids": spread_over_written(sample.support_ids_WK, mask_T),
            "support_logprobs": spread_over_written(sample.support_logprobs_WK, mask_T),
            "rollout_logprobs": torch.tensor(sample.logprobs[1:], dtype=torch.float32),
            "domain": torch.full((len(mask_T),), domains.index(sample.domain)),
            "watched": spread_over_written(watched_W, mask_T),
        }
        documents.append(Document(ids=sample.ids, written=sample.written, weight_T=mask_T * weight, extras=extras))
    return documents


def run(context: JobContext) -> None:
    """Run distillation."""
    settings = context.setting("stage", Distill)
    routing: dict[str, str] = dict(context.job.settings["routing"])
    domains = {name: context.setting_of("domains", name, Domain) for name in sorted(routing)}
    actors = Actors(context, domains, settings.sampling, settings.sequence_tokens)
    teachers = {}
    for name in sorted(set(routing.values())):
        folder = context.input_folder(f"teacher.{name}")
        require_same_tokenizer(actors.tokenizer, load_tokenizer_folder(folder), f"teacher `{name}`")
        teachers[name] = actors.open_scorer(folder)
    train(context, settings, DistillStage(settings, actors, OnPolicyBatches(context, actors), teachers, routing))
