"""Imports torchtitan's Qwen3.5 model, which imports fla's CUDA kernels whether they are used or not.

On a CPU, stand-ins take fla's place while torchtitan is imported and are removed again: what is left in `sys.modules` would make
transformers believe that fla is installed.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from .....specs.diagnostics import ExitCode, UserError
from ... import bootstrap

STAND_INS = {  # by module, what torchtitan 0.3.0 takes from it
    "fla.modules.conv.triton.ops": ("CausalConv1dFunction",),
    "fla.ops.gated_delta_rule": ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"),
    "fla.ops.gated_delta_rule.chunk": ("ChunkGatedDeltaRuleFunction",),
    "fla.ops.gated_delta_rule.fused_recurrent": ("FusedRecurrentFunction",),
}


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Modules that can be imported from, and not used, under fla's names."""
    before = dict(sys.modules)
    for path, names in STAND_INS.items():
        parents = path.split(".")
        for depth in range(1, len(parents) + 1):
            sys.modules.setdefault(".".join(parents[:depth]), types.ModuleType(".".join(parents[:depth])))
        for name in names:
            setattr(sys.modules[path], name, _function_class(name) if name[0].isupper() else _refuse)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "fla" and name not in before]:
            del sys.modules[name]


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("fla's kernels need a GPU")


def _function_class(name: str) -> type[torch.autograd.Function]:
    return type(name, (torch.autograd.Function,), {"forward": staticmethod(_refuse), "backward": staticmethod(_refuse)})


def _prepare() -> None:
    if bootstrap.ON_CPU:
        with stand_ins():
            importlib.import_module("torchtitan.models.qwen3_5")
    elif importlib.util.find_spec("fla") is None:
        raise UserError(
            "Qwen3.5 on a GPU needs the kernels of flash-linear-attention, which is not installed",
            exit_code=ExitCode.UNFIT,
            fix="pip install flash-linear-attention",
        )


_prepare()
