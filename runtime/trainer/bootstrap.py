"""What must be true before torchtitan 0.3.0 is imported. Importing this module makes it so.

torchtitan chooses its device when `torchtitan.tools.utils` is first imported and falls back to "cuda"; every other module copies
the choice. On a machine without a GPU this module therefore sets the device first, gives `torch.cpu` the few calls of
`torch.cuda` that torchtitan makes, and stands in for one leaf module that needs triton. On every machine it adds
`torch.distributed.set_timeout` where torch 2.13 lacks it. No function of torchtitan is replaced; spmd_types, which torchtitan's
default backend calls, is given an exchange that gloo can do in the place that it keeps for this.
"""

import importlib.metadata
import importlib.util
import os
import resource
import sys
import types
from typing import Any

import torch
import torch.distributed
from torch import Tensor

SUPPORTED_TORCHTITAN = "0.3.0"
TRITON_LEAF = "torchtitan.distributed.minimal_async_ep.kernels"  # CUDA only; imported unconditionally by the dispatchers

ON_CPU = not torch.cuda.is_available()


class _CpuDeviceModule(types.ModuleType):
    """torch.cpu, with what torchtitan asks of a device module."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def current_device(self) -> int:
        return 0  # torch.cpu says "cpu", but barrier(device_ids=...) wants numbers

    def get_device_name(self, device: Any = None) -> str:
        return "CPU"

    def get_device_properties(self, device: Any = None) -> types.SimpleNamespace:
        return types.SimpleNamespace(name="CPU", total_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "active_bytes.all.peak": peak_bytes,
            "reserved_bytes.all.peak": peak_bytes,
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """The kernel keeps one peak per process."""

    def empty_cache(self) -> None:
        """A CPU has none."""


class _GlooDistributed(types.ModuleType):
    """torch.distributed as spmd_types asks for it. gloo exchanges lists of equal sizes only, and single tensors of any."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)

    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], group: Any = None) -> None:
        output_rows, input_rows = ([len(one) for one in some] for some in (output_tensor_list, input_tensor_list))
        output = torch.cat(output_tensor_list)
        torch.distributed.all_to_all_single(output, torch.cat(input_tensor_list), output_rows, input_rows, group=group)
        for target, received in zip(output_tensor_list, output.split(output_rows), strict=True):
            target.copy_(received)


class _NeedsTriton(types.ModuleType):
    """Stands in for a module whose import needs triton; says so when it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError(f"{self.__name__}.{name} needs triton and a GPU")

        return refuse


def _check_version() -> None:
    installed = importlib.metadata.version("torchtitan")
    if installed != SUPPORTED_TORCHTITAN:
        raise RuntimeError(f"torchtitan {SUPPORTED_TORCHTITAN} is needed, {installed} is installed")


def _prepare() -> None:
    _check_version()
    if not hasattr(torch.distributed, "set_timeout"):
        from torch.distributed.distributed_c10d import _set_pg_timeout

        torch.distributed.set_timeout = lambda timeout, group=None: _set_pg_timeout(timeout, group)  # type: ignore[attr-defined]
    if importlib.util.find_spec("triton") is None:
        sys.modules.setdefault(TRITON_LEAF, _NeedsTriton(TRITON_LEAF))
    if ON_CPU:
        import spmd_types._dist
        import torchtitan.tools.utils as titan_utils

        titan_utils.device_type = "cpu"
        titan_utils.device_module = _CpuDeviceModule("torchtitan_cpu_device")
        spmd_types._dist.set_dist(_GlooDistributed("spmd_types_over_gloo"))


_prepare()
