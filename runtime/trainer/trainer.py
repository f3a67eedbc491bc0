"""torchtitan's Trainer with one batch form, one loss form and a stage that fills both.

What it does: takes the stage's global batch, gives this rank its rows, and minimises `sum(loss_weight * token_loss)`; the
weights sum to 1 over the global batch and torchtitan's gradient divide factor is 1, so every layout minimises the same number.
What it does not do: choose data, weights or losses; the stages do.

Shapes: B rows, L positions, N positions with a weight, V vocabulary (under tensor parallelism, the ids of this rank's shard),
H hidden width, Y layers with experts, C experts that a token visits.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.trainer import Trainer

from ...te_kernels.history import AmaxHistory
from ..checkpoints.manager import latest_step
from ..data.batch import PackedBatch, slice_rows
from ..engines.protocol import EngineSilent
from ..engines.weights import Weights
from ..jobs import Interrupted, JobContext
from ..losses.shard import WholeVocabulary
from ..monitors import UPDATE_SKIPPED
from .guard import GuardedOptimizers, require_finite
from .head import Lend
from .metrics import StepMetrics
from .model import amax_histories, document_inputs, transformers_weights
from .routing import recorded_choices


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedTokens:
    """The positions of a micro-batch that carry a weight; there may be none."""

    labels_N: Tensor  # int64
    weight_N: Tensor  # float32
    extras: Mapping[str, Tensor]  # [N] or [N, K]


class Stage(Protocol):
    """What a training stage gives the trainer, and one of `LogitsLoss` and `HiddenStatesLoss`."""

    steps: int  # optimizer steps in all

    def next_batch(self, step: int) -> PackedBatch:
        """The global batch of a step (from 1), the same on every rank; a resumed run asks for the same step again.

        The number of rows is a multiple of data-parallel degree times micro-batch.
        """
        ...

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """What the step's line in metrics.jsonl says, from the summed tensors; called before the step moves any weight.

        Where it sets `UPDATE_SKIPPED`, no weight moves.
        """
        ...


@runtime_checkable
class OverlappingStage(Protocol):
    """A stage that does something beside training."""

    def finish_step(self) -> None:
        """The step has moved the weights and is not saved yet: whatever it began is to be finished. Collective."""
        ...


class LogitsLoss(Protocol):
    """A stage whose loss reads logits."""

    def token_loss(self, logits_NV: Tensor, tokens: TrainedTokens, shard: WholeVocabulary) -> tuple[Tensor, dict[str, Tensor]]:
        """float32 [N] losses (weights not applied), and tensors of any shape that are summed over micro-batches and ranks.

        Of a tensor whose name ends with `_max` the largest is taken instead, element by element. Ranks that share a vocabulary find
        the same.
        """
        ...


@runtime_checkable
class HiddenStatesLoss(Protocol):
    """A stage whose loss reads hidden states and the output head; no logits are computed for it."""

    def hidden_loss(
        self, hidden_NH: Tensor, head_VH: Tensor, tokens: TrainedTokens, shard: WholeVocabulary
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `LogitsLoss.token_loss`. Even where N is 0 the losses must reach both tensors: ranks reduce gradients together.

        The gradient of hidden_NH is this rank's part of it.
        """
        ...


class StageLoss(BaseLoss):
    """The weighted sum of the stage's token losses. The output head sees the positions with a weight and no others."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config: Config, *, compile_config: Any = None) -> None:
        self.config = config

    def attach(self, stage: Any, model: torch.nn.Module) -> None:
        """Take the loss from this stage. The model computes no logits from now on: the loss does what it needs of the head."""
        self._stage, self._model = stage, model
        model._skip_lm_head = True

    @contextmanager
    def at_head(self, lend: Lend | None = None) -> Iterator[None]:
        """Within, the model's forward pass goes on to its head, and ends with logits or with what is lent its input and weight."""
        self._model.lm_head.lend, self._model._skip_lm_head = lend, False
        try:
            yield
        finally:
            self._model.lm_head.lend, self._model._skip_lm_head = None, True

    def losses_at_head(self, labels: Tensor, micro: PackedBatch) -> AbstractContextManager[None]:
        """Within, the model's forward pass ends with what the loss is called with."""
        return self.at_head(partial(self._losses, labels=labels, micro=micro, shard=self._model.lm_head.shard))

    def __call__(
        self, pred: Any, labels: Tensor, global_valid_tokens: Tensor | None = None, *, micro: PackedBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """torchtitan's form of a loss.

        Args:
            pred: what the model returned within `losses_at_head`.
        """
        loss_N, sums = pred
        return (loss_N * micro.loss_weight_BL[micro.loss_weight_BL != 0]).sum(), sums

    def _losses(
        self, hidden_BLH: Tensor, head_VH: Tensor, *, labels: Tensor, micro: PackedBatch, shard: WholeVocabulary
    ) -> tuple[Tensor, dict[str, Tensor]]:
        trained_BL = micro.loss_weight_BL != 0
        tokens = TrainedTokens(
            labels_N=labels[trained_BL],
            weight_N=micro.loss_weight_BL[trained_BL],
            extras={name: extra[trained_BL] for name, extra in micro.extras.items()},
        )
        hidden_NH = hidden_BLH[trained_BL]
        if isinstance(self._stage, HiddenStatesLoss):
            return self._stage.hidden_loss(hidden_NH, head_VH, tokens, shard)
        return self._stage.token_loss(F.linear(hidden_NH, head_VH), tokens, shard)


class NoTokenizer(BaseTokenizer):
    """torchtitan asks for a tokenizer; ours works before it, in the renderer."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__()
        self.eos_id = 0

    def encode(self, *args: Any, **kwargs: Any) -> list[int]:
        raise AssertionError("tokens come from the renderer")

    def decode(self, *args: Any, **kwargs: Any) -> str:
        raise AssertionError("tokens come from the renderer")

    def get_vocab_size(self) -> int:
        raise AssertionError("tokens come from the renderer")


class NoDataLoader(BaseDataLoader):
    """torchtitan asks for a data loader; batches come from the stage, as a function of the step, so there is no state."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any) -> None:
        self.config = config

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class PolymathTrainer(Trainer):
    """The trainer of every stage."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        pass

    stage: Stage
    context: JobContext
    loss_fn: StageLoss
    metrics_processor: StepMetrics
    optimizers: GuardedOptimizers

    def run(self, stage: Stage, context: JobContext) -> None:
        """Train from the last checkpoint, or from the start weights, to the stage's last step.

        Raises:
            Interrupted: a stop was asked for; a checkpoint of the current step is published.
        """
        self.stage, self.context = stage, context
        self.loss_fn.attach(stage, self.model_parts[0])
        self._sums: dict[str, Tensor] = {}
        self._measured: dict[str, float] = {}
        self._loss = torch.zeros((), device=self.device)
        self.optimizers.may_step = self._may_step
        self.metrics_processor.stage_metrics = lambda: self._measured
        self.metrics_processor.total_steps = stage.steps
        if context.is_first_rank:
            (context.folder / "trainer.json").write_text(json.dumps(self.config.to_dict(), default=str, indent=1, sort_keys=True))
        self.train()
        if self.step < self.config.training.steps:
            self.checkpointer.save(self.step, last_step=True)
            raise Interrupted(f"stopped after step {self.step} of {self.config.training.steps}")

    @property
    def data_parallel_size(self) -> int:
        return self.parallel_dims.get_mesh("batch").size() if self.parallel_dims.dp_enabled else 1

    @property
    def data_parallel_rank(self) -> int:
        return self.parallel_dims.get_mesh("batch").get_local_rank() if self.parallel_dims.dp_enabled else 0

    def should_continue_training(self) -> bool:
        """Ranks agree on a stop at a step boundary: one of them may see the request a moment earlier than another."""
        if not super().should_continue_training():
            return False
        stop = torch.tensor(float(self.context.stop_requested()))
        torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        return not bool(stop)

    def train_step(self, data_iterator: Iterator[Any]) -> None:
        """One optimizer step on this rank's share of the stage's global batch."""
        try:
            batch = self.stage.next_batch(self.step)
        except EngineSilent:
            self._save_before_leaving(self.step - 1)
            raise
        micros = self._own(batch)
        self.gradient_accumulation_steps = len(micros)
        self.metrics_processor.tokens = int((batch.loss_weight_BL != 0).sum())
        self.metrics_processor.ntokens_since_last_log += sum(micro.tokens_BL.numel() for micro in micros)
        self.metrics_processor.data_loading_times.append(0.0)
        self._sums = {}
        self._loss = torch.zeros((), device=self.device)
        if not batch.loss_weight_BL.any():
            self._pass_over()
        else:
            super().train_step(iter([({"micro": micro}, micro.labels_BL) for micro in micros]))
        if isinstance(self.stage, OverlappingStage):
            self.stage.finish_step()

    def _save_before_leaving(self, step: int) -> None:
        """Publish a checkpoint of the last step that was taken, unless there is one. Collective."""
        self.step = step
        if step and latest_step(Path(self.checkpointer.folder)) < step:
            self.checkpointer.save(step, last_step=True)

    def _own(self, batch: PackedBatch) -> list[PackedBatch]:
        """This rank's micro-batches of a global batch."""
        rows = batch.tokens_BL.shape[0]
        micro_rows = self.config.training.local_batch_size
        rows_per_rank, rest = divmod(rows, self.data_parallel_size)
        assert rest == 0 and rows_per_rank % micro_rows == 0, f"{rows} rows do not fit {self.data_parallel_size} x {micro_rows}"
        first = self.data_parallel_rank * rows_per_rank
        return [slice_rows(batch, first + start, first + start + micro_rows) for start in range(0, rows_per_rank, micro_rows)]

    def _pass_over(self) -> None:
        """A step without anything to train moves no weight: AdamW would still follow its momentum and its decay."""
        rates = self.lr_schedulers.get_metrics()
        self._measured = self._reduced_metrics()
        self.lr_schedulers.step()
        if self.metrics_processor.should_log(self.step):
            self.metrics_processor.log(self.step, 0.0, 0.0, 0.0, extra_metrics=rates)

    def post_dataloading_process(self, input_dict: dict[str, Any], labels: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Split a micro-batch into what the model sees and what the loss sees."""
        micro: PackedBatch = input_dict["micro"]
        model_inputs = {
            "input": micro.tokens_BL.to(self.device),
            "positions": micro.positions_BL.to(self.device),
            **document_inputs(self.config.model_spec, micro.documents_BL.to(self.device)),
        }
        inputs, labels, extra_kwargs = super().post_dataloading_process(model_inputs, labels)
        return inputs, labels, {**extra_kwargs, "micro": micro}

    def _forward_backward_body(
        self, inputs: Tensor, labels: Tensor, global_valid_tokens: Tensor, extra_kwargs: dict[str, Any]
    ) -> Tensor:
        micro = extra_kwargs.pop("micro")
        with self.train_context():
            with self.loss_fn.losses_at_head(labels, micro):
                pred = self.model_parts[0](inputs, **extra_kwargs)
            loss, sums = self.loss_fn(pred, labels, global_valid_tokens, micro=micro)
            del pred
            loss.backward()
        for name, value in sums.items():
            value = value.detach()
            known = self._sums.get(name)
            self._sums[name] = value if known is None else torch.maximum(known, value) if is_largest(name) else known + value
        self._loss += loss.detach()
        return loss

    def _may_step(self) -> bool:
        """Whether the optimizers may use the gradients: they are finite, and the stage does not skip the update. Collective.

        What the stage measures is known here, before any weight moves, so that it can stop in time.
        """
        require_finite(self._loss, self.model_parts[0].parameters(), self.step)
        for history in self._histories.values():
            history.step(largest_of_ranks)
        self._measured = self._reduced_metrics()
        return not self._measured.get(UPDATE_SKIPPED)

    @torch.no_grad()
    def expert_choices(self, batch: PackedBatch) -> list[tuple[PackedBatch, Tensor]]:
        """This rank's micro-batches, each with the experts that its tokens visit, int64 [B, L, Y, C]. Collective."""
        found: list[tuple[PackedBatch, Tensor]] = []
        for micro in self._own(batch):
            inputs, _, extra_kwargs = self.post_dataloading_process({"micro": micro}, micro.labels_BL)
            del extra_kwargs["micro"]
            with self.train_context(), recorded_choices(self.model_parts[0]) as layers:
                self.model_parts[0](inputs, **extra_kwargs)
            found.append((micro, torch.stack(layers, dim=2).cpu()))
        return found

    @torch.no_grad()
    def logits(self, batch: PackedBatch) -> list[tuple[PackedBatch, Tensor]]:
        """This rank's micro-batches of a small batch, each with float32 logits [B, L, V]. Collective."""
        model = self.model_parts[0]
        found: list[tuple[PackedBatch, Tensor]] = []
        for micro in self._own(batch):
            inputs, _, extra_kwargs = self.post_dataloading_process({"micro": micro}, micro.labels_BL)
            del extra_kwargs["micro"]
            with self.train_context(), self.loss_fn.at_head():
                logits = model(inputs, **extra_kwargs)
            whole = logits.full_tensor() if isinstance(logits, DTensor) else logits
            found.append((micro, whole.float().cpu()))
        if isinstance(model.lm_head, FSDPModule):
            model.lm_head.reshard()
        return found

    def weights(self) -> Weights:
        """The current weights under transformers' names, to be gathered in passes."""
        return transformers_weights(self.model_parts[0], self.config.model_spec)

    def reduced(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name over all ranks, as `LogitsLoss.token_loss` says. Collective, with the same names on every rank."""
        found: dict[str, Tensor] = {}
        for operation in (torch.distributed.ReduceOp.SUM, torch.distributed.ReduceOp.MAX):
            names = sorted(name for name in sums if is_largest(name) == (operation == torch.distributed.ReduceOp.MAX))
            if not names:
                continue
            flat = torch.cat([sums[name].double().reshape(-1) for name in names])
            if self.parallel_dims.dp_enabled:
                torch.distributed.all_reduce(flat, op=operation, group=self.parallel_dims.get_mesh("batch").get_group())
            pieces = flat.split([sums[name].numel() for name in names])
            found |= {name: piece.view_as(sums[name]) for name, piece in zip(names, pieces, strict=True)}
        return found

    @cached_property
    def _histories(self) -> dict[str, AmaxHistory]:
        return amax_histories(self.model_parts[0])

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's, and the state of delayed scaling where experts have one."""
        histories = {name: history.state_dict() for name, history in self._histories.items()}
        return {**super().state_dict(), **({"amax_histories": histories} if histories else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for name, history in self._histories.items():
            history.load_state_dict(state_dict["amax_histories"][name])

    def _reduced_metrics(self) -> dict[str, float]:
        return self.stage.summarize(self.reduced(self._sums))


def largest_of_ranks(tensor: Tensor) -> None:
    """Replace a tensor by its element-wise maximum over all ranks. Collective."""
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)


def is_largest(name: str) -> bool:
    """Whether of a stage's tensor the largest is wanted, rather than the sum."""
    return name.endswith("_max")
