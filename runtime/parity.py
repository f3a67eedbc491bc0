"""The gate after every weight sync: engine and trainer must say the same of a canary, or training stops.

A sync that fails without an error is what ruins an on-policy run: the engine then acts for a policy that nobody trains. Packed
experts that were not packed anew, a tied head that kept its old weights, a cached prefix of other weights: each showed as numbers
that are wrong, and as nothing else. The canary is scored as a prompt, which reads no cache, and its next token is written, which
does read it.

Shapes: B rows, T tokens of the canary, V vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..specs.diagnostics import ExitCode, UserError
from ..specs.machine import Precision
from .data.batch import Document
from .data.packing import pack_rows
from .engines.protocol import Engine, SamplingSettings

if TYPE_CHECKING:
    from .trainer.trainer import PolymathTrainer

CANARY_TOKENS = 64  # two blocks of the cache of keys and values; vLLM takes up the first where it is there
LARGEST_GAP = 1e-4  # in float32: engines and trainers differ by about 1e-5
LARGEST_MEAN_GAP = 0.25  # in bfloat16, where a token may visit another expert: 0.03 to 0.06 are usual, 0.8 a failed reload
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """How far apart the log-probabilities of engine and trainer are on the canary, in nats."""

    mean: float
    largest: float


def canary_of(valid_ids: Sequence[int], most_tokens: int, seed: int) -> list[int]:
    """Token ids that no model knows by heart, the same for the whole run."""
    drawn = random.Random(seed)
    return [drawn.choice(valid_ids) for _ in range(min(CANARY_TOKENS, most_tokens))]


def engine_logprobs(engine: Engine, canary: Sequence[int]) -> Tensor:
    """float32 [T]: of every token of the canary but the first, and of the most likely one after it."""
    (scores_T,) = engine.score_tokens([canary])
    (written,) = engine.generate([canary], limits=[1], sampling=GREEDY, stop_ids=[], seed=0)
    return torch.cat([scores_T, torch.tensor(written.logprobs)])


def trainer_logprobs(trainer: "PolymathTrainer", canary: Sequence[int]) -> Tensor:
    """As `engine_logprobs`, from the trainer's own forward pass. Collective."""
    rows = trainer.data_parallel_size * trainer.config.training.local_batch_size
    length = len(canary)
    document = Document(ids=(*canary, canary[0]), written=(True,) * (length + 1), weight_T=torch.full((length,), 1.0))
    _, logits_BTV = trainer.logits(pack_rows([[document]] * rows, length))[0]
    logprobs_TV = logits_BTV[0].log_softmax(dim=-1)
    scores_T = logprobs_TV[:-1].gather(1, torch.tensor(canary[1:])[:, None]).squeeze(1)
    return torch.cat([scores_T, logprobs_TV[-1:].amax(dim=-1)])


def require_parity(engine_T: Tensor, trainer_T: Tensor, precision: Precision, policy_version: int) -> Gap:
    """Compare what both say.

    Raises:
        UserError: exit code 6. They differ by more than rounding explains, or one of them says what is no number.
    """
    gap_T = (engine_T - trainer_T).abs()
    gap = Gap(mean=gap_T.mean().item(), largest=gap_T.max().item())
    exact = precision.compute == precision.experts.format == "float32"
    what, value, bound = ("largest", gap.largest, LARGEST_GAP) if exact else ("mean", gap.mean, LARGEST_MEAN_GAP)
    if not value <= bound:  # so that NaN fails
        raise UserError(
            f"after the weights of policy version {policy_version} went to the engine, it disagrees with the trainer on a canary: "
            f"the {what} gap between their log-probabilities is {value:.3g}, and {bound:g} is allowed",
            exit_code=ExitCode.FAILED,
            fix="nothing was rolled out with these weights; check the versions of vLLM and of the model (docs/engines.md)",
        )
    return gap
