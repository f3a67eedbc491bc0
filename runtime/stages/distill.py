"""Stage 3: multi-teacher domain-routed on-policy distillation with salient vocabulary alignment (method, section 6).

For every step:
  1. draw the same number of prompts from every domain;
  2. play them with a frozen snapshot of the student (`rollouts: teacher`: with their domain's teacher), each under its domain's
     limits; a prefix that a limit cut off is kept;
  3. route every trajectory to its domain's teacher, by the prompt's label alone: one teacher, no mixing, no fallback;
  4. the teacher reads the trajectory and names its top-k valid tokens where the student wrote each token;
  5. publish all of it in the ledger, and read it back;
  6. loss = reverse KL on that support, both sides renormalised on it: mean over a sample's written tokens, then over a domain's
     samples, then over the active domains, counted over the whole global batch.
Steps 4 and 6 have neighbours, other values of `student.distill.loss` (`distill_loss.py`). The default loss reads hidden states and
the support's rows of the output head; no logits of the whole vocabulary are computed for it.
Coverage, the student's mass on the support, is watched at a sample of the tokens: nothing in the loss pushes mass back into it.
What else is watched, and the alarms: `diagnostics.py`.
With `max_policy_lag: 1`, steps 2 to 5 of the next batch happen while this one trains: the student that plays is one step behind.
What it does not do: use rewards (they are only reported), temperatures or clipping, or train on older rollouts.

Source: Agents-A1 (arXiv 2606.30616), knowledge-action section.

Shapes: N positions with a weight, V vocabulary, U valid ids, H hidden width, D domains, T tokens of one sample,
W tokens it wrote, K tokens of the support.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...specs.distillation import Distill
from ...specs.model import Domain
from ..data.batch import Document, PackedBatch
from ..data.tokenizers import load_tokenizer_folder, require_same_rows, require_same_tokenizer
from ..jobs import JobContext
from ..ledger import LedgerSample
from ..losses.shard import WHOLE, WholeVocabulary
from ..rollouts import RolloutRequest, Trajectory
from ..teachers.service import Teachers, open_teachers
from . import distill_loss
from .diagnostics import Alarms, WatchedTokens, domain_metrics, routing_metrics
from .on_policy import Actors, OnPolicyBatches, by_domain, derived_seed, predicts_written, rollout_metrics, spread_over_written
from .training import train

if TYPE_CHECKING:
    from ..trainer.trainer import PolymathTrainer, TrainedTokens


class DistillStage:
    """The batches and the loss of distillation."""

    def __init__(
        self,
        settings: Distill,
        actors: Actors,
        batches: OnPolicyBatches,
        teachers: Teachers,
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
        self._share = dict.fromkeys(self._domains, 1.0)  # of the batch's weight
        self._valid_ids_U = torch.tensor(actors.tokenizer.valid_ids)
        self._step = 0
        self._watched = WatchedTokens(self._domains, actors.tokenizer.invalid_ids, distill_loss.importance_bounds(settings.loss))
        self._alarms = Alarms(batches.context, settings.alarms, self._domains)

    def attach(self, trainer: "PolymathTrainer") -> None:
        """Take the student's weights from this trainer."""
        self._batches.attach(trainer)

    def next_batch(self, step: int) -> PackedBatch:
        """The rows of one step (from 1)."""
        due, loss = step - 1, self.settings.loss
        of_teachers = self.settings.rollouts == "teacher"
        version = 0 if of_teachers else due  # a teacher never changes
        samples = self._batches.batch(
            due,
            version=version,
            oldest_version=max(0, version - self.settings.max_policy_lag),
            requests=self._requests(due),
            score=partial(self._score, step),
            play=self._play_teachers if of_teachers else None,
        )
        self._step = step
        self._metrics = {
            **rollout_metrics(samples),
            **domain_metrics(samples),
            **self._routing_metrics(step, samples),
            **self._batches.parity,
        }
        if self.settings.max_policy_lag and step < self.steps:
            self._batches.begin(step, version=due, requests=self._requests(step), score=partial(self._score, step + 1))
        written = [sample.num_written for sample in samples]
        weights = distill_loss.weights(loss, written, [sample.domain for sample in samples])
        self._share = dict.fromkeys(self._domains, 0.0)
        for sample, weight in zip(samples, weights, strict=True):
            self._share[sample.domain] += weight * sample.num_written
        watched = watched_tokens(written, loss.coverage_positions, derived_seed("coverage", step))
        documents = distill_documents(samples, self._domains, weights, watched)
        return self._batches.pack(documents, self.settings.sequence_tokens)

    def finish_step(self) -> None:
        """With `max_policy_lag: 1`, publish the batch that was played meanwhile: every checkpoint has the next batch."""
        self._batches.finish(version=self._step)

    def _routing_metrics(self, step: int, samples: Sequence[LedgerSample]) -> dict[str, float]:
        diagnostics = self.settings.diagnostics
        if (step - 1) % diagnostics.every_steps or self.settings.rollouts == "teacher":
            return {}
        if not self._actors.engine.capabilities.expert_choices:
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

    def _play_teachers(self, requests: Sequence[RolloutRequest], seed: int) -> list[Trajectory]:
        """Each request by the teacher of its domain."""
        played: dict[int, Trajectory] = {}
        for name, teacher in self._teachers.items():
            routed = self._routed(name, requests)
            own = self._actors.play([requests[number] for number in routed], derived_seed(seed, name), teacher)
            played |= zip(routed, own, strict=True)
        return [played[number] for number in range(len(requests))]

    def _score(self, step: int, trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
        """What the teacher of its domain says of each trajectory, if it is still its checkpoint after that."""
        scores: dict[int, dict[str, Any]] = {}
        for name, teacher in self._teachers.items():
            routed = self._routed(name, trajectories)
            own = [trajectories[number] for number in routed]
            if own:
                scores |= zip(routed, distill_loss.score(self.settings, name, teacher, own, self._valid_ids_U), strict=True)
                self._teachers.require_unchanged(name, step)
        return [scores[number] for number in range(len(trajectories))]

    def _routed(self, teacher: str, some: Sequence[RolloutRequest] | Sequence[Trajectory]) -> list[int]:
        """Which of them are of the teacher's domains."""
        return [number for number, one in enumerate(some) if self._routing[one.domain] == teacher]

    def hidden_loss(
        self, hidden_NH: Tensor, head_VH: Tensor, tokens: "TrainedTokens", shard: WholeVocabulary = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The divergence of each written token from its teacher's, and what is watched of it."""
        domain_N = tokens.extras["domain"]
        loss_N = distill_loss.token_loss(self.settings.loss, hidden_NH, head_VH, tokens, self._valid_ids_U, shard)
        per_domain_D = torch.zeros(len(self._domains), device=domain_N.device)
        return loss_N, {
            **self._watched.sums(hidden_NH, head_VH, tokens, shard),
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
            unmeasured = distill_loss.unmeasured(self.settings)
            watched = self._watched.metrics(sums)
            metrics |= {name: value for name, value in watched.items() if not name.startswith(unmeasured)}
            for place, domain in enumerate(self._domains):
                if sums["tokens"][place]:
                    metrics[f"kl.{domain}"] = sums["loss"][place].item() / self._share[domain]  # the domain's own mean
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


def distill_documents(
    samples: Sequence[LedgerSample], domains: Sequence[str], weights: Sequence[float], watched: Sequence[Tensor]
) -> list[Document]:
    """One document per sample, with a weight for each token it wrote; `watched` says which of them are watched."""
    documents = []
    for sample, weight, watched_W in zip(samples, weights, watched, strict=True):
        mask_T = predicts_written(sample.written)
        scores = {
            "support_ids": sample.support_ids_WK,
            "support_logprobs": sample.support_logprobs_WK,
            "teacher_logprobs": sample.teacher_logprobs_W,
        }
        extras = {name: spread_over_written(values, mask_T) for name, values in scores.items() if values is not None}
        extras["rollout_logprobs"] = torch.tensor(sample.logprobs[1:], dtype=torch.float32)
        extras["domain"] = torch.full((len(mask_T),), domains.index(sample.domain))
        extras["watched"] = spread_over_written(watched_W, mask_T)
        documents.append(Document(ids=sample.ids, written=sample.written, weight_T=mask_T * weight, extras=extras))
    return documents


def run(context: JobContext) -> None:
    """Run distillation."""
    settings = context.setting("stage", Distill)
    routing: dict[str, str] = dict(context.job.settings["routing"])
    domains = {name: context.setting_of("domains", name, Domain) for name in sorted(routing)}
    actors = Actors(context, domains, settings.sampling, settings.sequence_tokens)
    folders = {}
    for name in sorted(set(routing.values())):
        folder = context.input_folder(f"teacher.{name}")
        require_same_tokenizer(actors.tokenizer, load_tokenizer_folder(folder), f"teacher `{name}`")
        require_same_rows(context.input_folder("model"), folder, f"teacher `{name}`")
        folders[name] = folder
    role = "rollout" if settings.rollouts == "teacher" else "scorer"
    longest = max(domain.limits.context_tokens for domain in domains.values() if domain.limits is not None)
    teachers = open_teachers(context, role, folders, actors.tokenizer, longest)
    train(context, settings, DistillStage(settings, actors, OnPolicyBatches(context, actors), teachers, routing))
