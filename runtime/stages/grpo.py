"""The GRPO phases of teachers: group-normalised advantages and a clip that is wider above than below (method, section 5).

With `keep_mixed`, `keep_mixed.py` first picks the tasks that prompts are drawn from. For every rollout batch:
  1. draw prompts, in equal shares from the phase's domains, and play each of them `samples` times with the current weights;
  2. compose every episode's reward from its world's verifiers, as the spec says, and publish the batch in the ledger;
  3. advantage = (reward - mean of the group) / spread of the group, with `advantage: process` plus credit that ranks the group's
     failures by their steps; a group without differences is dropped, or with `dynamic_sampling: false` kept at advantage 0, where
     only the KL and the entropy move it;
  4. split the groups into `updates` shares, and for each take one optimizer step on the clipped loss, mean over the written
     tokens of its groups (so a long episode counts more than a short one, and no sample is favoured for being short).
A share without a single informative group is a batch of zero weights: no weight moves, and it is counted; after `MOST_NO_OPS` of
them in a row the run stops.
What it does not do: learn a value function, resample prompts until a batch is full, or train on what the policy did not write.

Sources: Shao et al. 2024 (DeepSeekMath); Yu et al. 2025 (DAPO) for the clip, the dropped groups and the mean over tokens.

Shapes: N positions with a weight, V vocabulary, T tokens of one sample, W tokens it wrote.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import Domain, GrpoPhase
from ..advantages import group_advantages, process_advantages
from ..data.batch import Document, PackedBatch
from ..engines.protocol import Engine
from ..jobs import JobContext
from ..ledger import LedgerSample
from ..losses import grpo as loss
from ..losses.shard import WHOLE, WholeVocabulary
from ..losses.weights import token_mean_weights
from ..rollouts import RolloutRequest, Trajectory
from .keep_mixed import keep_mixed
from .on_policy import Actors, OnPolicyBatches, predicts_written, rollout_metrics, spread_over_written
from .training import train

if TYPE_CHECKING:
    from ..trainer.trainer import PolymathTrainer, TrainedTokens


MOST_NO_OPS = 100


class GrpoStage:
    """The batches and the loss of a GRPO phase."""

    def __init__(self, settings: GrpoPhase, actors: Actors, batches: OnPolicyBatches, reference: Engine | None) -> None:
        self.settings = settings
        self.steps = settings.steps * settings.updates
        self._actors = actors
        self._batches = batches
        self._reference = reference
        self._metrics: dict[str, float] = {}

    def attach(self, trainer: "PolymathTrainer") -> None:
        """Take the policy's weights from this trainer."""
        self._batches.attach(trainer)

    def next_batch(self, step: int) -> PackedBatch:
        """The rows of one update (from 1)."""
        index, update = divmod(step - 1, self.settings.updates)
        samples = self._batches.batch(
            index,
            version=step - 1,
            oldest_version=index * self.settings.updates,
            requests=self._requests(index),
            score=self._score,
        )
        advantages = self._advantages(samples)
        share = [number for number, sample in enumerate(samples) if sample.group % self.settings.updates == update]
        informative = {samples[number].group for number in share if advantages[number] is not None}
        groups = {samples[number].group for number in share}
        if not informative:
            self._require_progress(step)
        self._metrics = {
            **rollout_metrics(samples),
            **self._batches.parity,
            "groups": float(len(groups)),
            "groups_dropped": float(len(groups) - len(informative)),
            "no_op": float(not informative),
        }
        trained = [number for number in share if advantages[number] is not None] or share[:1]
        documents = grpo_documents([samples[number] for number in trained], [advantages[number] for number in trained])
        return self._batches.pack(documents, self.settings.sequence_tokens)

    def _advantages(self, samples: Sequence[LedgerSample]) -> list[float | None]:
        rewards, groups = [sample.reward for sample in samples], [sample.group for sample in samples]
        if self.settings.advantage == "outcome":
            found = group_advantages(rewards, groups)
        else:
            outcomes, processes = [sample.outcome for sample in samples], [sample.process for sample in samples]
            found = process_advantages(rewards, outcomes, processes, groups, self.settings.process_weight)
        return found if self.settings.dynamic_sampling else [advantage or 0.0 for advantage in found]

    def _require_progress(self, step: int) -> None:
        """Refuse to go on where no update of a long time had anything to learn from: the ledger knows, whatever was resumed.

        Raises:
            UserError: exit code 6.
        """
        if step < MOST_NO_OPS or not all(self._is_no_op(one) for one in range(step - MOST_NO_OPS + 1, step)):
            return
        raise UserError(
            f"for {MOST_NO_OPS} updates every group of rollouts had one reward: there is nothing to learn from",
            exit_code=ExitCode.FAILED,
            fix="make the tasks easier or harder (`settings`, `keep_mixed`), or stop before: lower `steps`",
        )

    def _is_no_op(self, step: int) -> bool:
        index, update = divmod(step - 1, self.settings.updates)
        samples = self._batches.ledger.read(index)
        pairs = zip(samples, self._advantages(samples), strict=True)
        return all(advantage is None for sample, advantage in pairs if sample.group % self.settings.updates == update)

    def _requests(self, index: int) -> list[RolloutRequest]:
        """Every domain gets the same number of prompts; the first ones get one more where they do not divide."""
        requests: list[RolloutRequest] = []
        num_domains = len(self.settings.domains)
        for place, domain in enumerate(self.settings.domains):
            prompts = self.settings.prompts // num_domains + (place < self.settings.prompts % num_domains)
            first_group = len(requests) // self.settings.samples
            requests += self._actors.requests(domain, index, prompts, self.settings.samples, first_group)
        return requests

    def _score(self, trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
        """The log-probabilities of what was written under the phase's start weights, where the spec asks for them."""
        if self._reference is None:
            return [{} for _ in trajectories]
        scores = self._reference.score_tokens([trajectory.ids for trajectory in trajectories])
        return [
            {"reference_logprobs_W": score_T[predicts_written(trajectory.written)]}
            for trajectory, score_T in zip(trajectories, scores, strict=True)
        ]

    def token_loss(
        self, logits_NV: Tensor, tokens: "TrainedTokens", shard: WholeVocabulary = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped loss of each written token."""
        terms = loss.token_loss(
            logits_NV,
            tokens.labels_N,
            tokens.extras["rollout_logprobs"],
            tokens.extras["advantage"],
            clip=self.settings.clip,
            reference_logprobs_N=tokens.extras.get("reference_logprobs"),
            reference_kl=self.settings.reference_kl,
            entropy=self.settings.entropy,
            shard=shard,
        )
        weight_N = tokens.weight_N  # sums to 1 over the global batch, so weighted sums are means
        return terms.loss_N, {
            "ratio_mean": (weight_N * terms.ratio_N).sum(),
            "logprob_gap": (weight_N * terms.ratio_N.log().abs()).sum(),
            "clip_fraction": (weight_N * terms.clipped_N).sum(),
            "reference_kl": (weight_N * terms.reference_kl_N).sum(),
            "entropy": (weight_N * terms.entropy_N).sum(),
        }

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The step's metrics."""
        return {**self._metrics, **{name: value.item() for name, value in sums.items()}}

    def result(self) -> dict[str, Any]:
        """What the phase rolled out."""
        return {"steps": self.steps, **self._batches.totals(self.settings.steps)}


def grpo_documents(samples: Sequence[LedgerSample], advantages: Sequence[float | None]) -> list[Document]:
    """One document per sample; the weights of the samples with an advantage sum to 1 over the written tokens."""
    weights = token_mean_weights([sample.num_written for sample in samples], [one is not None for one in advantages])
    documents = []
    for sample, advantage, weight in zip(samples, advantages, weights, strict=True):
        mask_T = predicts_written(sample.written)
        extras = {
            "rollout_logprobs": torch.tensor(sample.logprobs[1:], dtype=torch.float32),
            "advantage": torch.full((len(mask_T),), advantage or 0.0),
        }
        if sample.reference_logprobs_W is not None:
            extras["reference_logprobs"] = spread_over_written(sample.reference_logprobs_W, mask_T)
        documents.append(Document(ids=sample.ids, written=sample.written, weight_T=mask_T * weight, extras=extras))
    return documents


def run(context: JobContext) -> None:
    """Run a GRPO job."""
    settings = context.setting("stage", GrpoPhase)
    domains = {name: context.setting_of("domains", name, Domain) for name in settings.domains}
    actors = Actors(context, domains, settings.sampling, settings.sequence_tokens)
    if settings.keep_mixed is not None:
        keep_mixed(context, actors, settings.keep_mixed)
    folders = {"reference": context.input_folder("model")} if settings.reference_kl else {}
    reference = actors.open_engines("scorer", folders).get("reference")
    train(context, settings, GrpoStage(settings, actors, OnPolicyBatches(context, actors), reference))
