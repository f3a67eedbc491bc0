"""The experts of the plan's format, installed by config and nothing else."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fp8_layers import FORMATS, recipe
from polymath.runtime.trainer import bootstrap  # noqa: F401  (before torchtitan)
from polymath.te_kernels.converter import ExpertsConverter, Float32Experts, ScaledExperts
from torch import Tensor
from torchtitan.models.common.moe import GroupedExperts, RoutedExperts
from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher
from torchtitan.protocols.model import BaseModel


def _experts() -> Float32Experts:
    experts = Float32Experts(Float32Experts.Config(dim=8, hidden_dim=6, num_experts=3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return experts


def test_every_row_goes_through_its_own_expert_in_float32() -> None:
    experts = _experts()
    x_RD = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    out = experts(x_RD, torch.tensor([2, 0, 3]))
    assert out.dtype == torch.float32
    for row, expert in enumerate([0, 0, 2, 2, 2]):
        gate, down, up = (weight[expert] for weight in (experts.w1_EFD, experts.w2_EDF, experts.w3_EFD))
        torch.testing.assert_close(out[row], down @ (F.silu(gate @ x_RD[row]) * (up @ x_RD[row])))


def test_an_expert_without_tokens_gets_a_zero_gradient() -> None:
    experts = _experts()
    experts(torch.randn(4, 8), torch.tensor([4, 0, 0])).square().sum().backward()
    assert experts.w1_EFD.grad is not None
    assert experts.w1_EFD.grad[0].abs().max() > 0
    assert experts.w1_EFD.grad[1:].abs().max() == 0


SIZES = {"dim": 128, "hidden_dim": 96, "num_experts": 4}


def routed(converter: ExpertsConverter.Config | None = None, layers: int = 1) -> list[RoutedExperts]:
    """The routed experts of layers as torchtitan builds them, with the same weights whatever the experts are."""

    @dataclass(kw_only=True, slots=True)
    class Model(BaseModel.Config):
        layers: list[Any]

    dispatcher = AllToAllTokenDispatcher.Config(num_experts=4, top_k=2)
    config = Model(
        layers=[
            RoutedExperts.Config(inner_experts=GroupedExperts.Config(**SIZES), token_dispatcher=dispatcher) for _ in range(layers)
        ]
    )
    if converter is not None:
        config = converter.build().convert(config)
    built = [layer.build() for layer in config.layers]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (weight for layer in built for weight in layer.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    return built


def scaled(name: str, **more: Any) -> ExpertsConverter.Config:
    return ExpertsConverter.Config(format=name, backend="reference", recipe=recipe(name), **more)


def passed_through(layer: RoutedExperts, dtype: torch.dtype = torch.float32) -> Tensor:
    """13 tokens, each through two of the experts 0, 1 and 3."""
    generator = torch.Generator().manual_seed(1)
    x_BLD = torch.randn(1, 13, 128, generator=generator).to(dtype)
    scores_BLK = torch.rand(1, 13, 2, generator=generator)
    ids_BLK = torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(13)])[None]
    ids_BLK[ids_BLK == 2] = 3
    return layer(x_BLD, scores_BLK, ids_BLK, torch.bincount(ids_BLK.reshape(-1), minlength=4))


@pytest.mark.parametrize("name", FORMATS)
def test_padded_groups_come_back_as_the_tokens_that_went_in(name: str) -> None:
    (plain,), (layer,) = routed(ExpertsConverter.Config(format="float32")), routed(scaled(name))
    found, expected = passed_through(layer), passed_through(plain)
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() < 0.1


def test_the_dispatcher_alone_changes_no_bit() -> None:
    (plain,), (padded,) = routed(), routed(scaled("fp8_blockwise"))
    padded.inner_experts = plain.inner_experts
    assert torch.equal(passed_through(padded), passed_through(plain))


def test_experts_of_an_excepted_layer_are_torchtitan_s_own_in_bfloat16() -> None:
    layers = routed(scaled("fp8_blockwise", except_layers=(0, 2)), layers=3)
    assert [type(layer.inner_experts) for layer in layers] == [GroupedExperts, ScaledExperts, GroupedExperts]
    plain = routed(layers=3)
    assert torch.equal(passed_through(layers[2]), passed_through(plain[2]))
    assert not torch.equal(passed_through(layers[1]), passed_through(plain[1]))


def test_names_and_shapes_of_the_weights_are_torchtitan_s() -> None:
    (plain,), (layer,) = routed(), routed(scaled("fp8_delayed"))
    assert {name: one.shape for name, one in layer.state_dict().items()} == {
        name: one.shape for name, one in plain.state_dict().items()
    }


def test_delayed_scaling_uses_what_earlier_steps_saw_and_only_passes_that_train_count() -> None:
    (layer,) = routed(scaled("fp8_delayed"))
    history = layer.inner_experts.history
    with torch.no_grad():
        passed_through(layer)
    assert history.amax_EO.abs().max() == 0
    first = passed_through(layer)
    first.square().sum().backward()
    seen_EO = history.amax_EO.clone()
    assert (seen_EO[[0, 1, 3]] > 0).all()
    assert seen_EO[2, [0, 2, 4, 5]].abs().max() == 0  # expert 2 has weights, and no tokens
    assert torch.equal(passed_through(layer), first)  # a second micro-batch of the step is scaled as the first
    history.step()
    e4m3, e5m2 = 448.0, 57344.0
    for operand, largest in enumerate((e4m3, e4m3, e4m3, e4m3, e5m2, e5m2)):
        assert history.scale_EO[0, operand] == largest / seen_EO[0, operand]
    assert history.scale_EO[2, 0] == 1
    assert not torch.equal(passed_through(layer), first)
    history.step()
    assert history.history_TEO[1].equal(seen_EO)


def test_a_resumed_history_scales_as_the_one_it_was_saved_from() -> None:
    (layer,), (resumed,) = routed(scaled("fp8_delayed")), routed(scaled("fp8_delayed"))
    passed_through(layer).sum().backward()
    layer.inner_experts.history.step()
    resumed.inner_experts.history.load_state_dict(layer.inner_experts.history.state_dict())
    assert torch.equal(passed_through(resumed), passed_through(layer))
