"""The chunked delta rule is the recurrence, and neither it nor the convolution remembers another document."""

import sys

import pytest
import torch
from polymath.runtime.trainer.models.qwen3_5.delta_net import (
    DocumentDeltaKernel,
    causal_convolution,
    gated_delta_rule,
)
from torch import Tensor

HEADS, KEY, VALUE = 2, 8, 6


def _inputs(documents: int, length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(documents, length, HEADS, *shape, generator=generator, dtype=torch.float64)

    inputs = [draw(KEY), draw(KEY), draw(VALUE), -2 * draw().abs(), draw().sigmoid()]
    return [tensor.requires_grad_() for tensor in inputs]


def _recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The rule one position at a time, as its authors write it."""
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    state = q.new_zeros(q.shape[0], HEADS, KEY, VALUE)
    outs = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        error = v[:, t] - torch.einsum("dnkv,dnk->dnv", state, k[:, t])
        state = state + torch.einsum("dnk,dnv->dnkv", k[:, t], error * beta[:, t][..., None])
        outs.append(torch.einsum("dnkv,dnk->dnv", state, q[:, t]) * KEY**-0.5)
    return torch.stack(outs, 1)


@pytest.mark.parametrize("length", [1, 5, 16, 37])
def test_the_chunked_rule_is_the_recurrence_and_so_are_its_gradients(length: int) -> None:
    inputs = _inputs(3, length)
    found, expected = gated_delta_rule(*inputs, chunk=16), _recurrence(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    gradients = (torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_decay_that_forgets_everything_gives_numbers() -> None:
    q, k, v, _, beta = _inputs(1, 16)
    g = torch.full((1, 16, HEADS), -200.0, dtype=torch.float64, requires_grad=True)
    out = gated_delta_rule(q, k, v, g, beta)
    out.sum().backward()
    assert out.isfinite().all() and g.grad is not None and g.grad.isfinite().all()


def test_the_state_starts_afresh_in_every_document() -> None:
    q, k, v, g, beta = _inputs(1, 23)
    offsets = torch.tensor([0, 1, 8, 20, 23], dtype=torch.int32)
    kernel = DocumentDeltaKernel(DocumentDeltaKernel.Config())
    packed = kernel(q[:, :, :1], k[:, :, :1], v, g, beta, cu_seqlens=offsets, cu_seqlens_cpu=offsets)
    q, k = (x[:, :, :1].repeat_interleave(HEADS, 2) for x in (q, k))  # value heads share the fewer key heads
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        alone = gated_delta_rule(*(tensor[:, start:stop] for tensor in (q, k, v, g, beta)))
        torch.testing.assert_close(packed[:, start:stop], alone, atol=1e-12, rtol=0)


def test_rows_without_offsets_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets"):
        DocumentDeltaKernel(DocumentDeltaKernel.Config())(*_inputs(1, 4))


def test_the_convolution_reaches_back_no_further_than_its_document() -> None:
    x_PD, weight_DW = torch.randn(9, 3), torch.randn(3, 4)
    packed = causal_convolution(x_PD, weight_DW, torch.tensor([0, 1, 2, 3, 4, 5, 0, 0, 1]))
    for start, stop in ((0, 6), (6, 7), (7, 9)):
        padded = torch.nn.functional.pad(x_PD[start:stop].T[None], (3, 0))
        alone = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, weight_DW[:, None], groups=3))[0].T
        torch.testing.assert_close(packed[start:stop], alone)


def test_no_stand_in_for_fla_is_left_behind() -> None:
    assert not [name for name in sys.modules if name.split(".")[0] == "fla"]
