"""What the on-policy stages share: actors that play a rank's episodes, decks of prompts, and the ledger in between.

A rollout batch is a function of the job's seed, its index and the policy's weights. It is played once: ranks play and score their
shares, the first rank publishes them in the ledger, and every rank reads the whole batch back. A resumed run finds it there.

Shapes: T tokens of one sample, W tokens it wrote.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Precision
from ...specs.model import Domain
from ...specs.training import Sampling
from ..data.batch import Document, PackedBatch
from ..data.packing import bins, pack
from ..data.renderer import Renderer
from ..data.tokenizers import load_tokenizer_folder
from ..engines.protocol import Engine, SamplingSettings, StaleEngine
from ..engines.registry import EngineRole, open_engines
from ..engines.shared import agreed
from ..files import write_json
from ..jobs import ROLLOUT, TOLD_ELSEWHERE, JobContext
from ..judging import open_judge
from ..launch.events import EventLog, read_events
from ..ledger import Ledger, LedgerSample
from ..parity import canary_of, engine_logprobs, require_parity, trainer_logprobs
from ..rollouts import TELL_SECONDS, RolloutProgress, RolloutRequest, StaleEpisodes, Trajectory, collect
from ..simulated_user import open_users
from ..worlds.protocol import Task, WorldError
from ..worlds.registry import open_world

if TYPE_CHECKING:
    from ..trainer.trainer import PolymathTrainer

SENT_AGAIN = "weights_sent_again"
T = TypeVar("T")
E = TypeVar("E", bound=UserError)


def derived_seed(*parts: object) -> int:
    """A seed of 31 bits for one purpose."""
    return int(hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:8], 16) >> 1


class PromptDeck:
    """A domain's training tasks, shuffled anew for every pass through them."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self.tasks = tasks
        self._seed = seed
        self._order = lru_cache(2)(self._shuffled)

    def draw(self, index: int, count: int) -> list[Task]:
        """The tasks of rollout batch `index` (from 0), if every batch draws `count`."""
        return [self._at(place) for place in range(index * count, (index + 1) * count)]

    def keep(self, tasks: Sequence[Task]) -> None:
        """Draw from these tasks alone."""
        self.tasks = tasks
        self._order.cache_clear()

    def _at(self, place: int) -> Task:
        passes, offset = divmod(place, len(self.tasks))
        return self.tasks[self._order(passes)[offset]]

    def _shuffled(self, passes: int) -> list[int]:
        """The order of one pass (cached as `_order`; a batch touches at most a few)."""
        order = list(range(len(self.tasks)))
        random.Random(derived_seed(self._seed, passes)).shuffle(order)
        return order


class Actors:
    """The policy's engine, the worlds it acts in and the renderers between them."""

    def __init__(self, context: JobContext, domains: Mapping[str, Domain], sampling: Sampling, sequence_tokens: int) -> None:
        """Draw the training tasks of every domain.

        Raises:
            UserError: a domain cannot be acted in, has too few tasks, or allows episodes longer than a row.
        """
        self._start = context.input_folder("model")
        self.tokenizer = load_tokenizer_folder(self._start)
        self._context = context
        self.domains = domains
        self.worlds = {name: _world(context, name, domain) for name, domain in domains.items()}
        self.renderers = {name: Renderer(self.tokenizer, world.tools) for name, world in self.worlds.items()}
        self.decks: dict[str, PromptDeck] = {}
        self._judge = open_judge(context)
        self._users = open_users(domains)
        self._sampling = SamplingSettings(temperature=sampling.temperature, top_p=sampling.top_p)
        for name, domain in domains.items():
            assert domain.prompts is not None and domain.limits is not None
            if domain.limits.context_tokens > sequence_tokens:
                raise UserError(
                    f"domain `{name}` allows episodes of {domain.limits.context_tokens} tokens, a row holds {sequence_tokens}",
                    exit_code=ExitCode.SPEC,
                    fix="raise the stage's `sequence_tokens` or lower `limits.context_tokens`",
                )
            seed = derived_seed(context.plan.seed, name, "train")  # of the run: every stage draws from the same training tasks
            try:
                tasks = self.worlds[name].tasks("train", domain.prompts.train, seed)
            except WorldError as error:
                raise UserError(f"domain `{name}`: {error}", exit_code=ExitCode.SPEC) from error
            self.decks[name] = PromptDeck(tasks, derived_seed(context.job.seed, name))

    @cached_property
    def engine(self) -> Engine:
        """The policy's, started on the job's start weights when it is first asked for, which all ranks do at once."""
        return open_engines(self._context, "rollout", {"policy": self._start}, self.tokenizer)["policy"]

    @property
    def canary(self) -> list[int]:
        """What engine and trainer are compared on."""
        longest = max(domain.limits.context_tokens for domain in self.domains.values() if domain.limits is not None)
        return canary_of(self.tokenizer.valid_ids, longest, derived_seed(self._context.plan.seed, "canary"))

    def requests(self, name: str, index: int, prompts: int, samples: int, first_group: int) -> list[RolloutRequest]:
        """`samples` episodes of each of `prompts` tasks of a domain, for rollout batch `index`."""
        domain = self.domains[name]
        assert domain.limits is not None
        return [
            RolloutRequest(domain=name, task=task, limits=domain.limits, reward=domain.reward, group=first_group + number)
            for number, task in enumerate(self.decks[name].draw(index, prompts))
            for _ in range(samples)
        ]

    def play(
        self,
        requests: Sequence[RolloutRequest],
        seed: int,
        engine: Engine | None = None,
        kept: Mapping[int, Trajectory] | None = None,
    ) -> list[Trajectory]:
        """Play them with an engine's current weights; left out, the policy's. `kept` and errors as those of `collect`."""
        shown = ShownRollout(self._context)
        try:
            return collect(
                engine or self.engine,
                self.renderers,
                self.worlds,
                requests,
                self._sampling,
                seed,
                shown.tell,
                self._judge,
                self._users,
                kept,
            )
        finally:
            shown.close()

    def open_engines(self, role: EngineRole, folders: Mapping[str, Path]) -> dict[str, Engine]:
        """Engines that score or play for teachers or a reference. Collective."""
        return open_engines(self._context, role, folders, self.tokenizer)


class ShownRollout:
    """Tells whoever looks how far a batch of episodes is: a file that is there while the first rank plays."""

    def __init__(self, context: JobContext) -> None:
        self._path = context.folder / ROLLOUT if context.is_first_rank else None
        self._told = time.monotonic()

    def tell(self, progress: RolloutProgress) -> None:
        """Write it down, now and then."""
        now = time.monotonic()
        if self._path is not None and now - self._told >= TELL_SECONDS:
            self._told = now
            done, finished = progress.done, dict(progress.finished)
            write_json(self._path, {"done": done, "total": progress.episodes, "tokens": progress.tokens, "finished": finished})

    def close(self) -> None:
        """The batch is over, or has failed."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _world(context: JobContext, name: str, domain: Domain) -> Any:
    if domain.world is None or domain.prompts is None or domain.limits is None:
        raise UserError(
            f"domain `{name}` cannot be acted in: it lacks `world`, `prompts` or `limits`",
            exit_code=ExitCode.SPEC,
            fix=f"add them under domains.{name}",
        )
    return open_world(context, name, domain)


Score = Callable[[Sequence[Trajectory]], list[dict[str, Any]]]
Play = Callable[[Sequence[RolloutRequest], int], list[Trajectory]]
"""From requests and a seed to their trajectories in the same order."""
PlayOwn = Callable[[Play], list[LedgerSample]]
"""From who plays to the samples of a rank's share of a batch."""


class OnPolicyBatches:
    """The rollout batches of a job: played and published once, then read."""

    def __init__(self, context: JobContext, actors: Actors) -> None:
        self.ledger = Ledger(context.folder / "batches")
        self.actors = actors
        self.context = context
        self._trainer: PolymathTrainer | None = None
        self._last: tuple[int, list[LedgerSample]] | None = None
        self._seen: dict[int, Counter[str]] = {}
        self._ahead: tuple[int, Future[list[LedgerSample]], PlayOwn] | None = None
        self._sent_again: int | None = None  # the last policy version that did not arrive at once
        self.parity: dict[str, float] = {}  # of the last weights that an engine outside the trainer was given

    def attach(self, trainer: "PolymathTrainer") -> None:
        """Take the policy's weights from this trainer."""
        self._trainer = trainer

    def batch(
        self,
        index: int,
        *,
        version: int,
        oldest_version: int,
        requests: Sequence[RolloutRequest],
        score: Score,
        play: Play | None = None,
    ) -> list[LedgerSample]:
        """The samples of rollout batch `index`, in the order of `requests`. Collective.

        Args:
            version: optimizer steps that the policy has taken.
            oldest_version: what it had taken when the batch was due.
            requests: of all ranks; whole groups stay on one rank.
            play: who plays instead of the policy's current weights.
            score: what a rank adds to its own trajectories, as fields of `LedgerSample`.

        Raises:
            EngineSilent: on every rank; an engine of one of them is gone, and nothing was published.
            UserError: exit code 6, on every rank; the policy's weights do not arrive at an engine.
        """
        if self._last is None or self._last[0] != index:
            if not self.ledger.exists(index):
                self._roll_out(index, version, requests, score, play)
            samples = self.ledger.read(index)
            self._check(index, samples, oldest_version, version)
            self._last = (index, samples)
            self._seen[index] = totals(samples)
        return self._last[1]

    @property
    def trainer(self) -> "PolymathTrainer":
        """Whose weights act."""
        assert self._trainer is not None
        return self._trainer

    def sync_engine(self, version: int) -> None:
        """Give the engine the trainer's weights, unless it has them: reading a batch from the ledger needs none. Collective."""
        if self.actors.engine.policy_version != version:
            self._give_weights(version)

    def _give_weights(self, version: int) -> None:
        """Give the engine the trainer's weights, once more if they do not arrive. Collective."""
        engine = self.actors.engine
        engine.load_weights(self.trainer.weights(), policy_version=version)
        if not engine.capabilities.embedded:
            self._sent_again_for(self._difference(version), version)

    def _difference(self, version: int) -> UserError | None:
        """What shows, if anything, that this rank's engine does not act with the trainer's weights. Collective."""
        engine, canary = self.actors.engine, self.actors.canary
        told = agreed(self.context, lambda: _or_error(StaleEngine, lambda: engine_logprobs(engine, canary)))
        expected_T = trainer_logprobs(self.trainer, canary)
        if isinstance(told, StaleEngine):
            return told
        try:
            gap = require_parity(told, expected_T, self.context.setting("precision", Precision), version)
        except UserError as difference:
            return difference
        sent_again = float(self._sent_again == version)
        self.parity = {"parity_gap_mean": gap.mean, "parity_gap_max": gap.largest, SENT_AGAIN: sent_again}
        return None

    def _sent_again_for(self, problem: UserError | None, version: int) -> bool:
        """Whether a rank's engine has other weights than the trainer's; all are given them again then. Collective.

        A dropped update shows as an answer of another version or, where a server stamps none, as a gap on the canary. It happens
        once; a difference that is still there after that is a fault of something else.

        Raises:
            UserError: on every rank; this policy version was sent again before.
        """
        context = self.context
        if not context.any_rank(problem is not None):
            return False
        if problem is not None:
            facts = {"folder": context.job.folder, "rank": context.rank, "policy_version": version, "cause": problem.message}
            dropped = problem.dropped if isinstance(problem, StaleEpisodes) else 0
            EventLog(context.run_dir).write("weights_differ", **facts, episodes_dropped=dropped)
        if self._sent_again == version:
            raise problem or UserError(f"an engine of another rank has other weights: {TOLD_ELSEWHERE}", exit_code=ExitCode.FAILED)
        self._sent_again = version
        if context.is_first_rank:
            EventLog(context.run_dir).write(SENT_AGAIN, folder=context.job.folder, policy_version=version)
        self._give_weights(version)
        return True

    def begin(self, index: int, *, version: int, requests: Sequence[RolloutRequest], score: Score) -> None:
        """Start to play and score a batch beside whatever this process does until `finish`; one that is published is left alone.

        Collective. Arguments as those of `batch`.
        """
        if self.ledger.exists(index):
            return
        assert self._ahead is None, "one batch is ahead, never more"
        self.sync_engine(version)
        pool = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        play_own = partial(self._play_own, index, requests, score)
        self._ahead = index, pool.submit(play_own, self.actors.play), play_own
        pool.shutdown(wait=False)

    def finish(self, version: int) -> None:
        """Wait for the batch that was begun, if any, and publish it. Collective.

        Args:
            version: optimizer steps that the policy has taken by now; episodes that were dropped are played by it.

        Raises:
            UserError: as `batch`.
        """
        if self._ahead is not None:
            (index, playing, play_own), self._ahead = self._ahead, None
            self._publish(index, self._fresh(version, playing.result, play_own))

    def _roll_out(self, index: int, version: int, requests: Sequence[RolloutRequest], score: Score, play: Play | None) -> None:
        play_own = partial(self._play_own, index, requests, score)
        if play is not None:
            self._publish(index, agreed(self.context, lambda: play_own(play)))
            return
        self._give_weights(version)
        self._publish(index, self._fresh(version, lambda: play_own(self.actors.play), play_own))

    def _play_own(self, index: int, requests: Sequence[RolloutRequest], score: Score, play: Play) -> list[LedgerSample]:
        """This rank's share of a batch, played and scored."""
        rank, ranks = self.context.rank, self.context.world_size
        own = [number for number, request in enumerate(requests) if request.group % ranks == rank]
        trajectories = play([requests[number] for number in own], derived_seed(self.context.job.seed, index, rank))
        scores = score(trajectories)
        return [_sample(number, trajectory, extra) for number, trajectory, extra in zip(own, trajectories, scores, strict=True)]

    def _fresh(self, version: int, playing: Callable[[], list[LedgerSample]], play_own: PlayOwn) -> list[LedgerSample]:
        """This rank's share, every token of it written by the policy's weights. Collective.

        Episodes that others wrote are played again, once the engine has been given the weights of `version` again.
        """

        def again() -> list[LedgerSample] | StaleEpisodes:
            if not isinstance(found, StaleEpisodes):
                return found
            play = partial(self.actors.play, kept=found.kept)
            return _or_error(StaleEpisodes, lambda: play_own(play))

        found = agreed(self.context, lambda: _or_error(StaleEpisodes, playing))
        while self._sent_again_for(found if isinstance(found, StaleEpisodes) else None, version):
            found = agreed(self.context, again)
        assert not isinstance(found, StaleEpisodes)
        return found

    def _publish(self, index: int, samples: Sequence[LedgerSample]) -> None:
        """Publish what every rank has played."""
        context = self.context
        self.ledger.write_part(index, context.rank, samples)
        context.barrier()
        if context.is_first_rank:
            self.ledger.publish(index, context.world_size)
        context.barrier()

    def _check(self, index: int, samples: Sequence[LedgerSample], oldest: int, newest: int) -> None:
        strangers = {sample.policy_version for sample in samples} - set(range(oldest, newest + 1))
        if strangers:
            raise UserError(
                f"{self.ledger.path(index)} was rolled out by policy version {min(strangers)}, and {newest} is training",
                exit_code=ExitCode.STALE,
                fix=f"delete {self.ledger.path(index)} and launch again: the batch is rolled out anew",
            )

    def totals(self, num_batches: int) -> Counter[str]:
        """Counts over all batches of the job, those before a resume included."""
        total: Counter[str] = Counter()
        for index in range(num_batches):
            total.update(self._seen.get(index) or totals(self.ledger.read(index)))  # `+` would drop what is 0
        folder = self.context.job.folder
        events = read_events(self.context.run_dir)
        total[SENT_AGAIN] = sum(event["event"] == SENT_AGAIN and event["folder"] == folder for event in events)
        return total

    def pack(self, documents: Sequence[Document], sequence_tokens: int) -> PackedBatch:
        """Rows for every rank: padded with rows of weight 0 to a multiple of data-parallel degree times micro-batch."""
        multiple = self.trainer.data_parallel_size * self.trainer.config.training.local_batch_size
        needed = len(bins([len(document.ids) - 1 for document in documents], sequence_tokens))
        return pack(documents, sequence_tokens, rows=-(-needed // multiple) * multiple, pad_id=self.actors.tokenizer.pad_id)


def _or_error(kind: type[E], ask: Callable[[], T]) -> T | E:
    """What it says, or the error of this kind that it raises."""
    try:
        return ask()
    except kind as error:
        return error


def _sample(number: int, trajectory: Trajectory, scores: Mapping[str, Any]) -> LedgerSample:
    return LedgerSample(
        number=number,
        ids=trajectory.ids,
        written=trajectory.written,
        logprobs=trajectory.logprobs,
        domain=trajectory.domain,
        task_key=trajectory.task_key,
        group=trajectory.group,
        status=trajectory.status,
        reward=trajectory.reward,
        outcome=trajectory.outcome,
        process=trajectory.process,
        turns=trajectory.turns,
        interruptions=trajectory.interruptions,
        dropped=trajectory.dropped,
        policy_version=trajectory.policy_version,
        **scores,
    )


def predicts_written(written: Sequence[bool]) -> Tensor:
    """bool [T-1]: position t predicts a token that the policy wrote."""
    return torch.tensor(written[1:], dtype=torch.bool)


def spread_over_written(values_W: Tensor, mask_T: Tensor) -> Tensor:
    """Values of written tokens at the positions that predict them, zero elsewhere: [W, ...] to [T-1, ...]."""
    spread = values_W.new_zeros((len(mask_T), *values_W.shape[1:]))
    spread[mask_T] = values_W
    return spread


def totals(samples: Sequence[LedgerSample]) -> Counter[str]:
    """What a batch adds to the job's result."""
    return Counter(
        episodes=len(samples),
        tokens=sum(len(sample.ids) for sample in samples),
        trained_tokens=sum(sample.num_written for sample in samples),
        truncated=sum(sample.status == "TRUNCATED" for sample in samples),
        forced=sum(sample.status == "FORCED" for sample in samples),
        interruptions=sum(sample.interruptions for sample in samples),
        dropped=sum(sample.dropped for sample in samples),
    )


def rollout_metrics(samples: Sequence[LedgerSample]) -> dict[str, float]:
    """What a step's line says of the rollouts it learns from."""
    count = len(samples)
    metrics = {
        "reward_mean": sum(sample.reward for sample in samples) / count,
        "completed": sum(sample.status == "COMPLETED" for sample in samples) / count,
        "forced": sum(sample.status == "FORCED" for sample in samples) / count,
        "truncated": sum(sample.status == "TRUNCATED" for sample in samples) / count,
        "interruptions": float(sum(sample.interruptions for sample in samples)),
        "dropped": float(sum(sample.dropped for sample in samples)),
        "rollout_tokens": float(sum(len(sample.ids) for sample in samples)),
        "written_tokens": float(sum(sample.num_written for sample in samples)),
    }
    for domain, own in by_domain(samples):
        metrics[f"outcome_mean.{domain}"] = sum(sample.outcome for sample in own) / len(own)
    return metrics


def by_domain(samples: Sequence[LedgerSample]) -> Iterator[tuple[str, list[LedgerSample]]]:
    """The samples of each domain, domains in order."""
    for domain in sorted({sample.domain for sample in samples}):
        yield domain, [sample for sample in samples if sample.domain == domain]
