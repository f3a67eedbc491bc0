"""A stage that reads hidden states trains as one that reads logits, whether or not the embeddings are tied."""

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from polymath.runtime.data.batch import IGNORE_INDEX, PackedBatch
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.losses import distill, subset
from polymath.runtime.losses.shard import WholeVocabulary
from polymath.runtime.stages.distill_loss import token_loss
from polymath.runtime.stages.import_model import write_random_model
from polymath.runtime.trainer.model import model_spec
from polymath.runtime.trainer.trainer import StageLoss, TrainedTokens
from polymath.specs.distillation import DistillLoss, Support
from polymath.specs.machine import ExpertPrecision
from polymath.specs.model import Model, ModelShape
from torch import Tensor, nn

ROWS, LENGTH, K = 2, 12, 5


class Dense:
    def token_loss(self, logits_NV: Tensor, tokens: TrainedTokens, shard: WholeVocabulary) -> tuple[Tensor, dict[str, Tensor]]:
        return distill.token_loss(logits_NV, *_support(tokens.extras)).loss_N, {}


class Subset:
    def hidden_loss(
        self, hidden_NH: Tensor, head_VH: Tensor, tokens: TrainedTokens, shard: WholeVocabulary
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return subset.token_loss(hidden_NH, head_VH, *_support(tokens.extras)), {}


class Neighbour:
    """A loss of the spec, as distillation dispatches it."""

    def __init__(self, loss: DistillLoss) -> None:
        self.loss = loss

    def hidden_loss(
        self, hidden_NH: Tensor, head_VH: Tensor, tokens: TrainedTokens, shard: WholeVocabulary
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return token_loss(self.loss, hidden_NH, head_VH, tokens, torch.arange(len(head_VH))), {}


class DenseNeighbour:
    def __init__(self, loss: DistillLoss) -> None:
        self.loss = loss

    def token_loss(self, logits_NV: Tensor, tokens: TrainedTokens, shard: WholeVocabulary) -> tuple[Tensor, dict[str, Tensor]]:
        ids_NK, logprobs_NK = _support(tokens.extras)
        return distill.token_loss(logits_NV, ids_NK, logprobs_NK, divergence=self.loss.divergence, tail=self.loss.tail).loss_N, {}


def _support(extras: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return extras["support_ids"], extras["support_logprobs"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """torchtitan's model, not sharded."""
    folder = tmp_path_factory.mktemp("model")
    shape = ModelShape(
        hidden=32, layers=1, heads=2, kv_heads=2, head_dim=32, experts=2, experts_per_token=1, expert_hidden=16, context_tokens=64,
        tied_embeddings=request.param,
    )  # fmt: skip
    settings = Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes", shape=shape)
    write_random_model(folder, shape, load_tokenizer(settings), seed=5)
    built = model_spec(folder, experts=ExpertPrecision(format="float32")).model.build()
    torch.manual_seed(0)
    built.init_weights(buffer_device=None)
    return built


def _batch(weight_BL: Tensor) -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(0, 256, (ROWS, LENGTH), generator=generator)
    top = torch.randn(ROWS, LENGTH, 256, generator=generator).log_softmax(-1).topk(K, dim=-1)
    return PackedBatch(
        tokens_BL=tokens_BL,
        labels_BL=torch.where(weight_BL != 0, tokens_BL, IGNORE_INDEX),
        positions_BL=torch.arange(LENGTH).expand(ROWS, LENGTH),
        documents_BL=torch.zeros(ROWS, LENGTH, dtype=torch.int64),
        loss_weight_BL=weight_BL,
        extras={"support_ids": top.indices, "support_logprobs": top.values},
    )


def _loss_and_gradients(stage: object, model: nn.Module, batch: PackedBatch, poison: Tensor | None = None) -> list[Tensor]:
    model.zero_grad()
    stage_loss = StageLoss(StageLoss.Config())
    stage_loss.attach(stage, model)
    poisoned = (
        [] if poison is None else [model.norm.register_forward_hook(lambda *call: call[-1].where(~poison.unsqueeze(-1), torch.nan))]
    )
    with stage_loss.losses_at_head(batch.labels_BL, batch):
        pred = model(batch.tokens_BL, positions=batch.positions_BL)
    for hook in poisoned:
        hook.remove()
    loss, _ = stage_loss(pred, batch.labels_BL, micro=batch)
    loss.backward()
    return [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]


def _weights(trained: int) -> Tensor:
    return (torch.rand(ROWS * LENGTH, generator=torch.Generator().manual_seed(1)) * (torch.arange(ROWS * LENGTH) < trained)).view(
        ROWS, LENGTH
    )


@pytest.mark.parametrize("trained", [ROWS * LENGTH, 5, 0])
def test_loss_and_gradients_of_every_weight_are_those_of_the_logits(model: nn.Module, trained: int) -> None:
    batch = _batch(_weights(trained))
    found, expected = (_loss_and_gradients(stage, model, batch) for stage in (Subset(), Dense()))
    assert len(found) == len(expected) == 1 + len(list(model.parameters()))
    for one, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(one, reference, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tail", ["none", "bucket"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("trained", [ROWS * LENGTH, 5, 0])
def test_every_loss_on_a_support_trains_as_its_formula_on_logits(
    model: nn.Module, trained: int, divergence: Literal["reverse_kl", "forward_kl", "jsd"], tail: Literal["none", "bucket"]
) -> None:
    batch, loss = _batch(_weights(trained)), DistillLoss(support=Support(top_k=K), divergence=divergence, tail=tail)
    found, expected = (_loss_and_gradients(stage, model, batch) for stage in (Neighbour(loss), DenseNeighbour(loss)))
    assert len(found) == len(expected) == 1 + len(list(model.parameters()))
    for one, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(one, reference, atol=1e-6, rtol=1e-4)


def test_hidden_states_of_positions_that_are_not_trained_are_never_read(model: nn.Module) -> None:
    batch = _batch(_weights(5))
    clean = _loss_and_gradients(Subset(), model, batch)
    poisoned = _loss_and_gradients(Subset(), model, batch, poison=batch.loss_weight_BL == 0)
    assert clean[0].isfinite() and torch.equal(clean[0], poisoned[0])


def test_the_model_gives_hidden_states_outside_and_its_head_s_logits_when_asked(model: nn.Module) -> None:
    batch = _batch(_weights(5))
    _loss_and_gradients(Dense(), model, batch)
    hidden_BLH = model(batch.tokens_BL, positions=batch.positions_BL)
    assert hidden_BLH.shape == (ROWS, LENGTH, 32)
    assert model.lm_head(hidden_BLH).shape[:2] == (ROWS, LENGTH)


def test_a_stage_that_reads_logits_gets_them_after_one_that_did_not(model: nn.Module) -> None:
    batch = _batch(_weights(5))
    before = _loss_and_gradients(Dense(), model, batch)
    _loss_and_gradients(Subset(), model, batch)
    assert torch.equal(before[0], _loss_and_gradients(Dense(), model, batch)[0])
