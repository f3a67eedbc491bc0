"""What an engine is: token ids in, token ids and log-probabilities out.

Shapes: T tokens of one sequence, K tokens of the support, Y layers with experts, C experts that a token visits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from .weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What an engine can do."""

    full_vocabulary_scores: bool
    expert_choices: bool  # whether it says which experts a token visits
    concurrent: bool = False  # whether many threads may ask at once, and are answered side by side
    embedded: bool = False  # whether it is part of the trainer's process, with a copy of the weights that it is handed


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who is answering."""

    tokenizer_digest: str
    vocabulary: int
    weights: str  # path or digest of the loaded weights
    policy_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How tokens are drawn; temperature 0 is greedy."""

    temperature: float
    top_p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One continuation."""

    ids: tuple[int, ...]  # ends with the stop token if `stopped`
    logprobs: tuple[float, ...]  # of each id under the policy at temperature 1 with no truncation
    stopped: bool  # False: the token limit cut it off


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK:
    """A teacher's support: row t is the distribution of the token at position t + 1."""

    ids_TK: Tensor  # int64 [T-1, K], valid ids only, most likely first
    logprobs_TK: Tensor  # float32 [T-1, K]


@dataclass(kw_only=True, slots=True)
class Traffic:
    """What went between this process and an engine in another; all zero for an embedded one."""

    sent_bytes: int = 0
    received_bytes: int = 0
    scored_tokens: int = 0
    generated_tokens: int = 0


class EngineInterrupted(Exception):
    """An engine could not answer this time; the same question may be asked again."""


class EngineSilent(UserError):
    """An engine that is somewhere else gives no answer any more: the run ends here, and can go on when it is back (exit code 7)."""

    def __init__(self, who: str, cause: str) -> None:
        super().__init__(
            f"{who} does not answer: {cause}",
            exit_code=ExitCode.INTERRUPTED,
            fix="start it again and launch again: the run goes on where it is",
        )


class StaleEngine(UserError):
    """An engine answered with other weights than the trainer gave it. Whoever can give them again may ask again (exit code 6)."""

    def __init__(self, found: int, wanted: int) -> None:
        super().__init__(
            f"the vLLM engine answered with policy version {found}, and the trainer gave it version {wanted}",
            exit_code=ExitCode.FAILED,
            fix="nothing of this batch was trained on; launch again to roll it out anew",
        )
        self.found, self.wanted = found, wanted


class Engine(Protocol):
    """An engine. Implementations: `transformers` (embedded), `vllm` in a process of its own."""

    capabilities: Capabilities
    policy_version: int
    traffic: Traffic

    def identity(self) -> Identity: ...

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
        ...

    def score_top_k(self, sequences: Sequence[Sequence[int]], k: int) -> list[TopK]:
        """The k most likely valid tokens after every prefix of each sequence."""
        ...

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """float32 [T-1] each: the log-probability of every token but the first."""
        ...

    def expert_choices(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """int64 [T, Y, C] each: the experts that every token visits, in any order; for engines that are capable of it."""
        ...

    def load_weights(self, weights: Weights, *, policy_version: int) -> None:
        """Replace the weights. Collective: every rank of the job calls it."""
        ...

    def close(self) -> None:
        """Let go of the engine and of what it holds; twice is no harm."""
        ...


def row_seed(seed: int, row: int) -> int:
    """The seed of one row of a call, in 31 bits: equal prompts of one call are answered apart."""
    return int(hashlib.sha256(f"{seed}:{row}".encode()).hexdigest()[:8], 16) >> 1
