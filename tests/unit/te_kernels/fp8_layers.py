"""The recipes that the compiler writes, and expert layers to try them on."""

from collections.abc import Sequence

import torch
from polymath.compiler.experts import RECIPES
from polymath.te_kernels.experts import expert_layer
from polymath.te_kernels.history import AmaxHistory
from polymath.te_kernels.recipe import Recipe
from polymath.te_kernels.reference import ReferenceArithmetic
from torch import Tensor

FORMATS = tuple(RECIPES)


def recipe(name: str) -> Recipe:
    engine_class, arguments = RECIPES[name]
    return Recipe(name=engine_class, arguments=arguments)


def arithmetic(name: str, experts: int = 3) -> ReferenceArithmetic:
    one = recipe(name)
    return ReferenceArithmetic(one, AmaxHistory(recipe=one, experts=experts) if name == "fp8_delayed" else None)


def layer(
    seed: int = 0, *, experts: int = 3, width: int = 160, hidden: int = 96, rows: Sequence[int] = (32, 0, 176)
) -> list[Tensor]:
    """x_RD, w1_EFD, w2_EDF, w3_EFD in float32, each waiting for a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).requires_grad_()

    return [
        normal(sum(rows), width, scale=1.0),
        normal(experts, hidden, width, scale=width**-0.5),
        normal(experts, width, hidden, scale=hidden**-0.5),
        normal(experts, hidden, width, scale=width**-0.5),
    ]


def passed(tensors: Sequence[Tensor], rows: Sequence[int], one: ReferenceArithmetic) -> list[Tensor]:
    """The output, and the gradients of the input and the weights for a fixed gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out_RD = expert_layer(*leaves, rows, one)
    generator = torch.Generator().manual_seed(9)
    out_RD.backward(torch.randn(out_RD.shape, generator=generator, dtype=torch.float32).to(out_RD.dtype))
    return [out_RD.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
