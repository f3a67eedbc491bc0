"""An engine in a process of its own, as the ranks of a job share it: they ask it side by side, and load its weights together."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from ..files import full_disk_is_clear
from ..jobs import TOLD_ELSEWHERE, JobContext
from ..shards import write_shards
from .protocol import Capabilities, Engine, EngineSilent, Generation, Identity, SamplingSettings, TopK, Traffic
from .weights import Weights

Answer = TypeVar("Answer")
FILE_BYTES = 2**30  # of weights that are on their way through a folder
Transferring = Callable[[Weights, int], None]
"""From weights and their policy version into every copy of an engine. Collective."""


def agreed(context: JobContext, ask: Callable[[], Answer]) -> Answer:
    """What this rank is answered, once every rank is. Collective.

    A rank whose engine is gone saves a checkpoint with all others before it leaves, so they have to know.

    Raises:
        EngineSilent: on every rank, if the engine of one of them is gone.
    """
    silent: EngineSilent | None = None
    answers: list[Answer] = []
    try:
        answers.append(ask())
    except EngineSilent as error:
        silent = error
    if context.any_rank(silent is not None):
        raise silent or EngineSilent("the engine of another rank", TOLD_ELSEWHERE)
    return answers[0]


class ReloadingEngine(Engine, Protocol):
    """An engine that takes its weights from a folder."""

    def reload(self, folder: Path, *, policy_version: int) -> None:
        """Replace the weights by those of a folder; `policy_version` is told only when all of them are there."""
        ...


class SharedEngine:
    """An `Engine` of a job. Every rank has one; a few ranks own the copies behind them."""

    def __init__(
        self, engine: ReloadingEngine, context: JobContext, *, owns_copy: bool, transfer: Transferring | None = None
    ) -> None:
        """
        Args:
            owns_copy: of the ranks that ask this copy, this one loads its weights.
            transfer: how weights get into the copies; left out, by a folder.
        """
        self._engine, self._context, self._owns_copy = engine, context, owns_copy
        self._transfer = transfer or self._by_folder
        self.policy_version = engine.policy_version

    @property
    def capabilities(self) -> Capabilities:
        return self._engine.capabilities

    @property
    def traffic(self) -> Traffic:
        return self._engine.traffic

    def identity(self) -> Identity:
        """Who is answering."""
        return self._engine.identity()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        limits: Sequence[int],
        sampling: SamplingSettings,
        stop_ids: Sequence[int],
        seed: int,
    ) -> list[Generation]:
        """Continue each prompt by at most its limit of tokens, until a stop token."""
        return self._engine.generate(prompts, limits=limits, sampling=sampling, stop_ids=stop_ids, seed=seed)

    def score_top_k(self, sequences: Sequence[Sequence[int]], k: int) -> list[TopK]:
        """The k most likely valid tokens after every prefix of each sequence."""
        return self._engine.score_top_k(sequences, k)

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """float32 [T-1] each: the log-probability of every token but the first."""
        return self._engine.score_tokens(sequences)

    def expert_choices(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """As the engine says, if it does."""
        return self._engine.expert_choices(sequences)

    def load_weights(self, weights: Weights, *, policy_version: int) -> None:
        """Have every copy take the weights; their version is told only when all of them are there. Collective.

        Raises:
            EngineSilent: on every rank; one of the copies is gone.
        """
        self._transfer(weights, policy_version)
        self.policy_version = self._engine.policy_version = policy_version

    def _by_folder(self, weights: Weights, policy_version: int) -> None:
        """Write the weights where every copy reads them, and have every copy read them."""
        folder = self._context.folder / "weights"
        if self._context.is_first_rank:
            write_weights(weights, folder)
        else:
            gather_with_others(weights)
        self._context.barrier()
        agreed(self._context, lambda: self._engine.reload(folder, policy_version=policy_version) if self._owns_copy else None)
        if self._context.is_first_rank:
            shutil.rmtree(folder)

    def close(self) -> None:
        """Leave it."""
        self._engine.close()


def gather_with_others(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Go to the end of a pass whose weights only other ranks want. Collective."""
    deque(weights, maxlen=0)


def write_weights(weights: Weights, folder: Path) -> None:
    """A folder that vLLM reads weights from. Collective.

    Raises:
        UserError: the disk is full.
    """
    with full_disk_is_clear(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_shards(weights, folder, FILE_BYTES)
