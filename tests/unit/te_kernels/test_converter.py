"""The experts of the plan's format, installed by config and nothing else."""

import torch
import torch.nn.functional as F
from polymath.runtime.trainer import bootstrap  # noqa: F401  (before torchtitan)
from polymath.te_kernels.converter import Float32Experts


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
