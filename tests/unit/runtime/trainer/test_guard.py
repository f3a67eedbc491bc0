"""No bad number reaches a weight, a stage can keep a step from moving any, and a loss on a support moves them as its formula on all
logits does: a real trainer of one rank, and scripted stages."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from polymath.compiler import api
from polymath.compiler.plan import Sources
from polymath.runtime.data.batch import Document, PackedBatch
from polymath.runtime.data.packing import pack
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.jobs import JobContext
from polymath.runtime.losses.shard import WholeVocabulary
from polymath.runtime.monitors import UPDATE_SKIPPED
from polymath.runtime.stages import distill_loss
from polymath.runtime.stages.import_model import write_random_model
from polymath.runtime.trainer.build import build_trainer, start_distributed
from polymath.runtime.trainer.guard import require_finite
from polymath.runtime.trainer.trainer import PolymathTrainer, TrainedTokens
from polymath.specs.diagnostics import UserError
from polymath.specs.distillation import DistillLoss, Support
from polymath.specs.model import Model, ModelShape, StudentSft
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor

SMOKE = Path(__file__).parents[4] / "recipes" / "smoke.yaml"
LENGTH = 32
SUPPORT, SUPPORT_OF = 8, 300  # ids of the vocabulary
ALL_IDS = torch.arange(SUPPORT_OF)
SHAPE = ModelShape(
    hidden=32, layers=1, heads=2, kv_heads=2, head_dim=32, experts=4, experts_per_token=2, expert_hidden=16, context_tokens=256,
    tied_embeddings=True,
)  # fmt: skip


class Scripted:
    """A stage whose loss is the cross-entropy times what the test says of the step."""

    steps = 20

    def __init__(
        self, factors: Mapping[int, float] | None = None, skipped: tuple[int, ...] = (), empty: tuple[int, ...] = ()
    ) -> None:
        self.factors, self.skipped, self.empty = factors or {}, skipped, empty
        self.step = 0
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.trainer: PolymathTrainer | None = None

    def next_batch(self, step: int) -> PackedBatch:
        assert self.trainer is not None
        self.step = step
        self.weights[step - 1] = {name: one.detach().clone() for name, one in self.trainer.model_parts[0].state_dict().items()}
        ids = tuple(range(20 + step, 20 + step + 12))
        weight_T = torch.full((11,), 0.0 if step in self.empty else 1 / 22)
        document = Document(ids=ids, written=(False, *[True] * 11), weight_T=weight_T)
        return pack([document, document], LENGTH, rows=2)

    def token_loss(self, logits_NV: Tensor, tokens: TrainedTokens, shard: WholeVocabulary) -> tuple[Tensor, dict[str, Tensor]]:
        loss_N = torch.nn.functional.cross_entropy(logits_NV.float(), tokens.labels_N, reduction="none")
        return _Scale.apply(loss_N, self.factors.get(self.step, 1.0)), {"seen": tokens.weight_N.sum(), "worst_max": loss_N.max()}

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: one.item() for name, one in sums.items()} | ({UPDATE_SKIPPED: 1.0} if self.step in self.skipped else {})


class Dense(Scripted):
    """Distillation by plain formulas: all logits, those of the support, renormalised, and autograd."""

    def next_batch(self, step: int) -> PackedBatch:
        batch = super().next_batch(step)
        generator = torch.Generator().manual_seed(step)
        logits = torch.randn(*batch.tokens_BL.shape, SUPPORT_OF, generator=generator).mul(3)
        top = logits.log_softmax(-1).topk(SUPPORT, dim=-1)
        return replace(batch, extras={"support_ids": top.indices, "support_logprobs": top.values})

    def token_loss(self, logits_NV: Tensor, tokens: TrainedTokens, shard: WholeVocabulary) -> tuple[Tensor, dict[str, Tensor]]:
        ids_NK, teacher_NK = tokens.extras["support_ids"], tokens.extras["support_logprobs"]
        log_p_NK = logits_NV.gather(1, ids_NK).log_softmax(dim=-1)
        return (log_p_NK.exp() * (log_p_NK - teacher_NK.log_softmax(dim=-1))).sum(dim=-1), {}


class OnSupport(Dense):
    """The same as distillation computes it by default: from hidden states and rows of the head."""

    def hidden_loss(
        self, hidden_NH: Tensor, head_VH: Tensor, tokens: TrainedTokens, shard: WholeVocabulary
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return distill_loss.token_loss(DistillLoss(support=Support(top_k=SUPPORT)), hidden_NH, head_VH, tokens, ALL_IDS, shard), {}


class _Scale(torch.autograd.Function):
    """Leaves values alone and scales their gradient, so that a gradient can be bad where the loss is not."""

    @staticmethod
    def forward(ctx: Any, loss_N: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return loss_N.clone() if factor == factor else loss_N * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    earlier = {name: os.environ.get(name) for name in alone}
    os.environ.update(alone)
    deterministic = torch.are_deterministic_algorithms_enabled()
    start_distributed()
    yield
    torch.distributed.destroy_process_group()
    torch.use_deterministic_algorithms(deterministic)
    for name, value in earlier.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def context(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    mesh = [f"placement.{kind}.trainer.{name}=1" for kind in ("sft", "grpo", "distill") for name in ("devices", "expert")]
    rows = [f"student.sft.{name}={value}" for name, value in (("sequence_tokens", LENGTH), ("batch_sequences", 2))]
    plan = api.compile(SMOKE, overrides=["cluster.per_node=1", *mesh, *rows])
    job = plan.job("sft")
    model = Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words")
    tokenizer = load_tokenizer(model)
    folder = tmp_path / "start"
    write_random_model(folder, getattr(request, "param", SHAPE), tokenizer, seed=1)
    tokenizer.save(folder)
    monkeypatch.setattr(JobContext, "input_folder", lambda _, name: folder)
    sources = Sources(spec_folder="", runs="", urls={})
    found = JobContext(plan=plan, sources=sources, job=job, run_dir=tmp_path, rank=0, world_size=1, barrier=lambda: None)
    found.folder.mkdir(parents=True)
    return found


def _train(context: JobContext, stage: Scripted) -> PolymathTrainer:
    trainer = build_trainer(context, context.setting("stage", StudentSft), steps=stage.steps)
    stage.trainer = trainer
    try:
        trainer.run(stage, context)
        stage.weights[stage.steps] = trainer.model_parts[0].state_dict()
    finally:
        trainer.close()
    return trainer


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def _lines(context: JobContext) -> list[dict[str, float]]:
    return [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_a_bad_number_stops_the_run_before_it_moves_a_weight(context: JobContext, bad: float) -> None:
    stage = Scripted({3: bad})
    before: dict[str, Tensor] = {}
    with pytest.raises(UserError, match=r"step 3: .* not a finite number; the step was not taken") as caught:
        _train(context, stage)
    assert caught.value.exit_code == 6
    assert stage.trainer is not None
    before = stage.weights[2]
    assert _equal(before, stage.trainer.model_parts[0].state_dict())
    assert not _equal(before, stage.weights[1])  # the steps before it did move them
    assert [line["step"] for line in _lines(context)] == [1, 2]


def test_a_skipped_update_moves_no_weight_and_training_goes_on(context: JobContext) -> None:
    stage = Scripted(skipped=(2, 5))
    _train(context, stage)
    moved = [not _equal(stage.weights[step], stage.weights[step - 1]) for step in range(1, 7)]
    assert moved == [True, False, True, True, False, True]
    assert [line["step"] for line in _lines(context) if line.get(UPDATE_SKIPPED)] == [2, 5]


def test_distillation_moves_the_weights_as_its_formula_on_all_logits_does(context: JobContext) -> None:
    stages: list[Dense] = []
    losses: list[list[float]] = []
    for stage in (Dense(), OnSupport()):
        shutil.rmtree(context.folder)
        context.folder.mkdir()
        _train(context, stage)
        stages.append(stage)
        losses.append([line["loss"] for line in _lines(context)])
    dense, on_support = stages
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[0][-1] != losses[0][0]
    assert not _equal(dense.weights[0], dense.weights[20])
    for name, expected in dense.weights[20].items():
        torch.testing.assert_close(on_support.weights[20][name], expected, atol=1e-4, rtol=1e-3, msg=name)


def test_tensors_are_summed_over_micro_batches_and_those_named_max_are_not(context: JobContext) -> None:
    _train(context, Scripted())
    for line in _lines(context):
        assert line["seen"] == pytest.approx(1)
        assert line["worst_max"] >= line["loss"] * 0.999


def test_a_batch_without_a_token_to_train_moves_no_weight_and_training_goes_on(context: JobContext) -> None:
    stage = Scripted(empty=(3,))
    _train(context, stage)
    assert _equal(stage.weights[2], stage.weights[3])
    assert not _equal(stage.weights[1], stage.weights[2]) and not _equal(stage.weights[3], stage.weights[4])
    line = _lines(context)[2]
    assert (line["step"], line["loss"], line["tokens"]) == (3, 0.0, 0)


@pytest.mark.parametrize("context", [SHAPE, replace(SHAPE, tied_embeddings=False)], indirect=True, ids=["tied", "untied"])
def test_a_micro_batch_gathers_the_output_head_once_and_reduces_its_gradient_once(
    context: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, gathered, reduced = Scripted(), [], []
    unshard, reduce = FSDPParamGroup.unshard, _fsdp_param_group.foreach_reduce

    def counted(group: FSDPParamGroup, *arguments: Any) -> None:
        assert stage.trainer is not None
        if stage.trainer.model_parts[0].lm_head in group.modules and not group.is_unsharded:
            gathered.append(stage.step)
        unshard(group, *arguments)

    def counted_reduce(parameters: list[Any], *arguments: Any, **more: Any) -> Any:
        assert stage.trainer is not None
        owners = [owner for one in parameters for owner in (one._module_info.module, *one._module_info.shared_modules)]
        if stage.trainer.model_parts[0].lm_head in owners:
            reduced.append(stage.step)
        return reduce(parameters, *arguments, **more)

    monkeypatch.setattr(FSDPParamGroup, "unshard", counted)
    monkeypatch.setattr(_fsdp_param_group, "foreach_reduce", counted_reduce)
    trainer = _train(context, stage)
    micro_batches = 2 // trainer.config.training.local_batch_size
    assert sorted(gathered) == sorted(reduced) == sorted(list(range(1, stage.steps + 1)) * micro_batches)
    assert isinstance(trainer.model_parts[0].lm_head.weight, DTensor)  # sharded again


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["large", "small"])
def test_one_bad_number_among_clipped_gradients_is_found_wherever_it_is(bad: float, place: str) -> None:
    parameters = {"large": torch.nn.Parameter(torch.zeros(64, 64)), "small": torch.nn.Parameter(torch.zeros(8))}
    for one in parameters.values():
        one.grad = torch.randn(one.shape)
    gradient = parameters[place].grad
    assert gradient is not None
    gradient.view(-1)[5] = bad
    torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0, foreach=True)
    with pytest.raises(UserError, match="a gradient is not a finite number"):
        require_finite(torch.zeros(()), parameters.values(), step=3)


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e30])  # the norm of the last is infinite, so that clipping leaves zeros
def test_finite_gradients_are_let_through(scale: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(64, 64)), torch.nn.Parameter(torch.zeros(8)), torch.nn.Parameter(torch.zeros(0))]
    for one in parameters:
        one.grad = torch.randn(one.shape) * scale
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    require_finite(torch.zeros(()), parameters, step=3)
