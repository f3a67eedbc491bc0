"""Supervised data: sources into documents, documents into the global batch of every optimizer step.

What it does: renders every kept row once, cuts what is longer than a row of the batch (the beginning is kept), and gives the
batch of step s as a pure function of the documents, the seed and s, so that a resumed run needs no state. What it does not do: read
ahead or spread rows over ranks.

Every epoch shuffles the documents, packs all of them by best-fit decreasing and shuffles the rows. Rows of consecutive epochs form
one stream that steps take from, so a step at the end of an epoch is filled up from the next one. Where the spec asks for it, the
rows of a window of steps are dealt to those steps by cost: no rank then waits long for another. The order knows nothing of ranks.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import TrajectorySource
from .batch import Document, PackedBatch
from .packing import bins, by_cost_in_windows, pack_rows
from .renderer import Renderer
from .tokenizers import ChatTokenizer
from .trajectories import Conversation, SourceReport, bad_row, read_source

TOO_LONG = "longer than sequence_tokens"
NOTHING_LEFT = "longer than sequence_tokens, and the model wrote nothing before the cut"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file to read."""

    url: str
    source: TrajectorySource
    tools: Sequence[Mapping[str, Any]] = field(default=())  # of the domain, for rows that name none
    sha256: str | None = None  # what the plan was locked with; None where it was not


def read_documents(
    files: Sequence[SourceFile], tokenizer: ChatTokenizer, sequence_tokens: int
) -> tuple[list[Document], list[SourceReport]]:
    """Read and render the files, in order.

    Returns:
        The documents, weight 1 on every token that the model wrote, and a report for each file.

    Raises:
        UserError: exit code 3; a file is missing, empty, has a bad row, or leaves nothing to train on; 4: it is not the locked one.
    """
    documents: list[Document] = []
    reports: list[SourceReport] = []
    renderers: dict[str, Renderer] = {}
    for file in files:
        report = SourceReport(url=file.url)
        reports.append(report)
        for conversation in read_source(file.url, file.source, report):
            try:
                document = _document(conversation, file, tokenizer, renderers, sequence_tokens, report)
            except (ValueError, RecursionError) as error:
                raise bad_row(file.url, conversation.row, str(error)) from error
            if document is not None:
                documents.append(document)
        if file.sha256 not in (None, report.sha256):
            raise UserError(
                f"{file.url} has changed since the plan was made (sha256 {report.sha256[:12]}, locked {file.sha256[:12]})",
                exit_code=ExitCode.STALE,
                fix="lock and compile again, or restore the file",
            )
    if not documents:
        raise UserError(
            "no row is left to train on: " + "; ".join(report.summary() for report in reports),
            exit_code=ExitCode.SPEC,
            fix="lower minimum_reward or raise sequence_tokens",
        )
    return documents, reports


def _document(
    conversation: Conversation,
    file: SourceFile,
    tokenizer: ChatTokenizer,
    renderers: dict[str, Renderer],
    sequence_tokens: int,
    report: SourceReport,
) -> Document | None:
    """The document of a row, counted in the report; None where nothing that the model wrote fits. Adds to `renderers`."""
    tools = file.tools if conversation.tools is None else conversation.tools
    # Not canonical: the order of a tool's parameters is the order in which the model writes them.
    key = json.dumps(list(tools), allow_nan=False)
    if key not in renderers:
        renderers[key] = Renderer(tokenizer, tools)
    rendered = renderers[key].render(conversation.messages)
    ids, written = rendered.ids[: sequence_tokens + 1], rendered.written[: sequence_tokens + 1]
    targets = sum(written[1:])
    if not targets:
        report.filtered[NOTHING_LEFT] += 1
        return None
    if len(ids) < len(rendered.ids):
        report.truncated[TOO_LONG] += 1
    report.kept += 1
    report.tokens += len(ids)
    report.written_tokens += targets
    return Document(ids=ids, written=written, weight_T=torch.tensor(written[1:], dtype=torch.float32))


class SftData:
    """The global batches of a supervised stage: every written token of a batch weighs the same, and the weights sum to 1.

    Args:
        documents: from `read_documents`; each of at most `sequence_tokens` + 1 tokens.
        sequence_tokens: length of a row.
        batch_sequences: rows of the global batch.
        seed: decides the order.
        pad_id: the token of padding.
        balance_window: steps that rows of like cost are brought together over; 1 leaves the order random.
        cost: of a document of so many tokens, in any unit; needed for a window of more than one step.

    Attributes:
        rows_per_epoch: rows that hold all documents; the same in every epoch.
        steps_per_epoch: rows_per_epoch / batch_sequences, not rounded.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        sequence_tokens: int,
        batch_sequences: int,
        seed: int,
        pad_id: int = 0,
        *,
        balance_window: int = 1,
        cost: Callable[[int], float] = float,
    ) -> None:
        self.documents = documents
        self.sequence_tokens = sequence_tokens
        self.batch_sequences = batch_sequences
        self.seed = seed
        self.pad_id = pad_id
        self.balance_window = balance_window
        self._cost = cost
        self._lengths = [len(document.ids) - 1 for document in documents]
        self._epochs: dict[int, list[list[int]]] = {}  # the one or two epochs that steps are being taken from
        self.rows_per_epoch = len(self._epoch_rows(0))  # best-fit decreasing sees sorted lengths, so order changes no count
        self.steps_per_epoch = self.rows_per_epoch / batch_sequences

    @property
    def mean_batch_tokens(self) -> float:
        """Tokens in a global batch, on average over an epoch; padding does not count."""
        return sum(len(document.ids) for document in self.documents) / self.steps_per_epoch

    def steps_for(self, epochs: float) -> int:
        """Optimizer steps of so many passes, rounded up."""
        return math.ceil(epochs * self.steps_per_epoch - 1e-9)

    def batch(self, step: int) -> PackedBatch:
        """The global batch of an optimizer step, counted from 1."""
        first = (step - 1) * self.batch_sequences
        rows: list[list[Document]] = []
        for number in range(first, first + self.batch_sequences):
            epoch, row = divmod(number, self.rows_per_epoch)
            rows.append([self.documents[index] for index in self._epoch_rows(epoch)[row]])
        batch = pack_rows(rows, self.sequence_tokens, self.pad_id)
        targets = int((batch.loss_weight_BL != 0).sum())  # a float32 sum would be exact only up to 2^24
        return replace(batch, loss_weight_BL=batch.loss_weight_BL / targets)

    def _epoch_rows(self, epoch: int) -> list[list[int]]:
        """The documents of every row of an epoch."""
        if epoch not in self._epochs:
            generator = random.Random(f"{self.seed}:{epoch}")  # seeded by text: the same everywhere
            order = list(range(len(self.documents)))
            generator.shuffle(order)
            rows = [
                [order[index] for index in row] for row in bins([self._lengths[index] for index in order], self.sequence_tokens)
            ]
            generator.shuffle(rows)
            if self.balance_window > 1:
                costs = [sum(self._cost(self._lengths[index]) for index in row) for row in rows]
                order = by_cost_in_windows(costs, self.batch_sequences, self.balance_window, generator)
                rows = [rows[number] for number in order]
            self._epochs = {number: known for number, known in self._epochs.items() if number == epoch - 1} | {epoch: rows}
        return self._epochs[epoch]
