"""Stage 1 and the SFT phases of teachers: cross-entropy on what the model wrote (method, section 4).

For every step:
  1. take the step's packed rows; the weights of the written tokens are equal and sum to 1 over the global batch;
  2. minimise the weighted cross-entropy.
What it does not do: decide what was written (the renderer does) or how documents share a row (packing does).
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...specs.model import Distill, Domain, Model, Optimization, Sft, SftPhase, StudentSft
from ..data.batch import PackedBatch
from ..data.sft_data import SftData, documents_from_sources
from ..data.tokenizers import load_tokenizer
from ..jobs import JobContext
from ..losses import sft as loss
from .training import train

STAGE_TYPES: dict[str, type[Sft]] = {"StudentSft": StudentSft, "SftPhase": SftPhase}


class SftStage:
    """The data of an SFT job, as a function of the step."""

    def __init__(self, data: SftData, *, steps: int, report: dict[str, Any]) -> None:
        self.data = data
        self.steps = steps
        self.report = report
        self.trained_tokens = 0

    def next_batch(self, step: int) -> PackedBatch:
        return self.data.batch(step)

    def token_loss(self, logits_NV: Tensor, tokens: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return loss.token_loss(logits_NV, tokens.labels_N), {}

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def result(self) -> dict[str, Any]:
        return {**self.report, "steps": self.steps}


def run(context: JobContext) -> None:
    """Run an SFT job."""
    settings = context.setting("stage", STAGE_TYPES[context.job.settings["stage_type"]])
    data, report = _data(context, settings)
    steps = settings.steps if settings.steps is not None else max(1, math.ceil(settings.epochs * data.steps_per_epoch))
    train(context, settings, SftStage(data, steps=steps, report=report))


def run_continued(context: JobContext) -> None:
    """The control of the scoreboard: SFT goes on for as many tokens as distillation saw, with distillation's optimizer."""
    settings = context.setting("stage", StudentSft)
    optimization: Optimization = context.setting("distill", Distill)
    data, report = _data(context, settings)
    tokens = context.input_result("distill")["tokens"]
    steps = max(1, math.ceil(tokens / data.mean_batch_tokens))
    train(context, optimization, SftStage(data, steps=steps, report={**report, "matched_tokens": tokens}))


def _data(context: JobContext, settings: Sft) -> tuple[SftData, dict[str, Any]]:
    """Read, render, filter and truncate the stage's trajectories."""
    model = context.setting("model", Model)
    domains = {name: context.setting_of("domains", name, Domain) for name in context.job.settings["domains"]}
    tokenizer = load_tokenizer(model, context.input_folder("model"))
    documents, report = documents_from_sources(context, domains, settings, tokenizer)
    data = SftData(
        documents,
        sequence_tokens=settings.sequence_tokens,
        batch_sequences=settings.batch_sequences,
        seed=context.job.seed,
    )
    return data, report
