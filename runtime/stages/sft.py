"""Stage 1 and the SFT phases of teachers: cross-entropy on what the model wrote (method, section 4).

For every step:
  1. take the step's packed rows; the weights of the written tokens are equal and sum to 1 over the global batch;
  2. minimise the weighted cross-entropy.
What it does not do: decide what was written (the renderer does) or how documents share a row (packing does).
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...specs.model import Domain, Sft, SftPhase, StudentSft
from ..data.batch import PackedBatch
from ..data.sft_data import SftData, SourceFile, read_documents
from ..data.tokenizers import load_tokenizer_folder
from ..jobs import JobContext
from ..losses import sft as loss
from ..losses.shard import WHOLE, WholeVocabulary
from ..worlds.registry import open_world
from .training import train

STAGE_TYPES: dict[str, type[Sft]] = {"StudentSft": StudentSft, "SftPhase": SftPhase}


class SftStage:
    """The data of an SFT job, as a function of the step."""

    def __init__(self, data: SftData, *, steps: int, report: dict[str, Any]) -> None:
        self.data = data
        self.steps = steps
        self.report = report

    def next_batch(self, step: int) -> PackedBatch:
        return self.data.batch(step)

    def token_loss(self, logits_NV: Tensor, tokens: Any, shard: WholeVocabulary = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        return loss.token_loss(logits_NV, tokens.labels_N, shard), {}

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {}

    def result(self) -> dict[str, Any]:
        return {"steps": self.steps, **self.report}


def run(context: JobContext) -> None:
    """Run an SFT job."""
    settings = context.setting("stage", STAGE_TYPES[context.job.settings["stage_type"]])
    data, report = _read(context, settings)
    steps = settings.steps if settings.epochs is None else data.steps_for(settings.epochs)
    assert steps is not None
    train(context, settings, SftStage(data, steps=steps, report=report))


def run_continued(context: JobContext) -> None:
    """The control of the scoreboard: SFT goes on, with distillation's optimizer, for as many tokens as distillation saw."""
    settings = context.setting("stage", StudentSft)
    data, report = _read(context, settings)
    tokens = context.input_result("budget")["tokens"]
    steps = max(1, round(tokens / data.mean_batch_tokens))
    train(context, settings, SftStage(data, steps=steps, report={**report, "budget_tokens": tokens}))


def _read(context: JobContext, settings: Sft) -> tuple[SftData, dict[str, Any]]:
    """Read, filter, render and truncate the stage's trajectories, and say what became of every row."""
    tokenizer = load_tokenizer_folder(context.input_folder("model"))
    files = [
        file
        for name in context.job.settings["domains"]
        for file in _files(context, name, context.setting_of("domains", name, Domain), settings.trajectories)
    ]
    documents, sources = read_documents(files, tokenizer, settings.sequence_tokens)
    if context.is_first_rank:
        for source in sources:
            print(source.summary(), flush=True)
    data = SftData(
        documents,
        settings.sequence_tokens,
        settings.batch_sequences,
        context.job.seed,
        tokenizer.pad_id,
        balance_window=settings.balance_window,
        cost=_cost(context),
    )
    return data, {"sources": [source.as_json() for source in sources]}


def _cost(context: JobContext) -> Callable[[int], float]:
    """What a document of so many tokens costs, by the estimate in the plan; there only where rows are balanced by it."""
    flops = context.job.settings.get("document_flops", {"per_token": 1.0, "per_square": 0.0})
    return lambda tokens: flops["per_token"] * tokens + flops["per_square"] * tokens**2


def _files(context: JobContext, name: str, domain: Domain, selected: str) -> list[SourceFile]:
    """The files of a domain that the stage trains on."""
    tools = open_world(context, name, domain).tools if domain.world is not None else ()
    files = []
    for number, source in enumerate(domain.trajectories):
        if source.name != selected:
            continue
        if source.synthesize is not None:
            played = f"trajectories.{name}"  # by models, in a job of its own
            folder = context.input_folder(played if played in context.job.inputs else "trajectories")
            url = str(folder / f"{name}.{source.name}.jsonl")
            files.append(SourceFile(url=url, source=source, tools=tools))
        else:
            key = f"source.{name}.{number}"
            files.append(SourceFile(url=context.source(key), source=source, tools=tools, sha256=context.job.inputs[key].digest))
    return files
