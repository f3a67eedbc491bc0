"""`vllm_worker` or `vllm_server` on a CPU with vLLM's own NCCL engine, whose communicator alone is another: gloo, without a GPU.

`trainer_endpoint` is the other end of the communicator.
"""

import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from polymath.runtime.engines import vllm_server, vllm_worker
from polymath.runtime.engines.vllm_weights import WeightSync

PATIENCE = timedelta(seconds=900)


class GlooCommunicator:
    """What vLLM's engines ask of `PyNcclCommunicator`."""

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=PATIENCE)
        self._group = dist.ProcessGroupGloo(store, rank, world_size, PATIENCE)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        del self._group


def trainer_endpoint(info: Any) -> GlooCommunicator:
    """In place of `nccl_common.trainer_init`."""
    return GlooCommunicator(info.master_address, info.master_port, 0, info.world_size)


def worker_endpoint(info: Any, parallel: Any) -> GlooCommunicator:
    """In place of `nccl_common.worker_init_process_group`."""
    return GlooCommunicator(info.master_address, info.master_port, info.rank_offset + parallel.rank, info.world_size)


class GlooWeightSync(WeightSync):
    """The extension of a worker, wherever vLLM makes it: its server does so in a process of its own."""

    def transfer_weights(self, step: str, info: Any) -> None:
        from vllm.distributed.weight_transfer import nccl_engine

        nccl_engine.worker_init_process_group = worker_endpoint
        torch.cuda.current_stream = lambda: None  # type: ignore[assignment, return-value]
        torch.accelerator.synchronize = lambda: None  # type: ignore[assignment]
        super().transfer_weights(step, info)


def main() -> None:
    modules = {module.__name__: module for module in (vllm_worker, vllm_server)}
    option, name, *words = sys.argv[1:]
    assert option == "-m", "it stands for an interpreter that runs one of them"
    usual = f"--worker-extension-cls={WeightSync.__module__}.{WeightSync.__qualname__}"
    other = f"--worker-extension-cls=on_vllm.transfer_worker.{GlooWeightSync.__qualname__}"
    sys.argv[1:] = [other if word == usual else word for word in words]
    assert other in sys.argv
    modules[name].main()


if __name__ == "__main__":
    main()
