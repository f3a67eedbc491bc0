"""What stands between gradients and weights: a step is taken only if every number is finite and the stage does not object.

torchtitan looks at the loss after the optimizer has used it. Here the optimizers ask first, so a bad number never reaches a weight,
a moment of AdamW or a checkpoint.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.optimizer import OptimizersContainer

from ...specs.diagnostics import ExitCode, UserError


class GuardedOptimizers(OptimizersContainer):
    """torchtitan's optimizers. They ask before every step, and do nothing where the answer is no."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    may_step: Callable[[], bool] = staticmethod(lambda: True)

    def step(self, closure: None = None) -> None:
        """Take the step, if it may be taken. Collective where the question is."""
        if self.may_step():
            super().step(closure)


def require_finite(loss: Tensor, parameters: Iterable[torch.nn.Parameter], step: int) -> None:
    """Refuse a step whose loss or gradients hold a NaN or an infinity on any rank. Collective.

    Args:
        loss: this rank's share, a scalar.
        parameters: their gradients are clipped already, so a sum of finite ones is finite.

    Raises:
        UserError: on every rank alike.
    """
    gradients = [_local(one.grad) for one in parameters if one.grad is not None]
    total = torch.zeros_like(loss) if _norm_was_finite(gradients) else torch.stack([one.sum() for one in gradients]).sum()
    bad = torch.stack([~loss.detach().isfinite(), ~total.isfinite()]).to(torch.int32)
    torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    is_bad_loss, is_bad_gradient = bad.tolist()
    if is_bad_loss or is_bad_gradient:
        what = "the loss is" if is_bad_loss else "the loss is finite, but a gradient is"
        raise UserError(
            f"step {step}: {what} not a finite number; the step was not taken, and no weight has changed",
            exit_code=ExitCode.FAILED,
            fix="lower `learning_rate` or `clip_norm`, or compute in float32; the last checkpoint is sound, and launching again "
            "goes on from there",
        )


def _norm_was_finite(gradients: list[Tensor]) -> bool:
    """Whether one small gradient proves that the norm of all, which clipping multiplied each number by the inverse of, was finite.

    A norm that is not a number leaves nothing else behind, and an infinite one leaves only zeros and what is not a number. So one
    finite number other than zero shows that every number on every rank is finite, without another pass over all of them.
    """
    smallest = min((one for one in gradients if one.numel()), key=Tensor.numel, default=None)
    return not gradients or (smallest is not None and bool((smallest.isfinite() & (smallest != 0)).any()))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
