"""`vllm_worker` on a CPU with vLLM's own NCCL engine, whose communicator alone is another: gloo, which needs no GPU.

`trainer_endpoint` is the other end of the communicator.
"""

import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from polymath.runtime.engines import vllm_worker

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


def main() -> None:
    from vllm.distributed.weight_transfer import nccl_engine

    nccl_engine.worker_init_process_group = worker_endpoint
    torch.cuda.current_stream = lambda: None  # type: ignore[assignment, return-value]
    torch.accelerator.synchronize = lambda: None  # type: ignore[assignment]
    assert sys.argv[1:3] == ["-m", vllm_worker.__name__], "it stands for an interpreter that runs the worker"
    del sys.argv[1:3]
    vllm_worker.main()


if __name__ == "__main__":
    main()
