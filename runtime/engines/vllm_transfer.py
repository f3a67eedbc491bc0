"""New weights from the trainer's GPUs into vLLM's, by vLLM's own transfer engines: NCCL, or CUDA IPC on a device that both share.

The trainer's side is vLLM's (`TrainerWeightTransferEngine`), which sends the weights; ours is what it asks of whoever owns them:
the weights by name, and a way to tell each copy of the engine what to do, which goes over the copy's socket or to its server. On
the copy's side it comes to `vllm_weights.py`, inside vLLM's worker. vLLM is imported by the ranks that send, and by no other.
A copy that dies or hangs in the middle of a transfer leaves the other end in a collective that never ends. Whoever waits for the
copy sees it, at once or after as long as any engine is waited for, and if the transfer is not over soon after that the rank that
sends ends.

Read in vLLM 0.32; `tests/on_vllm/test_transfer.py` binds every call to vLLM's sources and moves weights on a CPU. NCCL and IPC
themselves have never run: that needs GPUs.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from torch import Tensor

from ..jobs import JobContext, leave
from .protocol import EngineSilent
from .shared import agreed, gather_with_others
from .transfer_words import encoded
from .vllm_launch import free_port
from .weights import Weights

PACKED_BYTES = 2**30  # of a buffer that weights are packed into, at least
END_SECONDS = 120.0  # for a transfer to fail by itself once a copy is silent, the gathering of what is left included


class Receiver(Protocol):
    """A copy of an engine that takes weights from the trainer's device."""

    def transfer(self, step: str, info: Any, *, policy_version: int) -> None:
        """Do one step: `init`, `start`, `update` or `finish`; `info` is in JSON. The version is told after the last of them.

        Raises:
            EngineSilent: it does not answer any more.
        """
        ...

    def close(self) -> None:
        """Ask it no more."""
        ...


class Transfer:
    """How weights get into every copy of an engine. Each rank of the job has one."""

    def __init__(self, backend: str, context: JobContext, copies: Sequence[Receiver], tensor: int) -> None:
        """Nothing is sent yet.

        Args:
            backend: a name of `TRAINERS`.
            copies: of the engine; all of them.
            tensor: devices of a copy, each with a worker that receives.
        """
        self._backend, self._context = backend, context
        self._workers = len(copies) * tensor
        self._copies, self._source = Copies(copies, tensor, self._expect_the_end), Source()
        self._silent: EngineSilent | None = None  # why the transfer is to end
        self._over = threading.Event()
        self._trainer: Any = None

    def __call__(self, weights: Weights, policy_version: int) -> None:
        """Send them. Collective.

        Raises:
            EngineSilent: on every rank; one of the copies is gone.
        """
        self._copies.policy_version = policy_version
        self._over.clear()
        try:
            agreed(self._context, lambda: self._send(weights))
        finally:
            self._over.set()

    def close(self) -> None:
        """Leave the copies, which may end then."""
        if self._trainer is not None and self._silent is None:  # one that waits for a copy would wait here as well
            self._trainer.shutdown()
            self._trainer = None
        self._copies.close()

    def _expect_the_end(self, silent: EngineSilent) -> None:
        """A copy does not answer: the transfer fails by itself, or this rank leaves."""
        self._silent = silent
        threading.Thread(target=self._leave_unless_over, args=(silent,), daemon=True).start()

    def _leave_unless_over(self, silent: EngineSilent) -> None:
        if not self._over.wait(END_SECONDS):
            leave(self._context, silent)

    def _send(self, weights: Weights) -> None:
        self._source.weights, self._source.current = weights, iter(weights)
        try:
            if self._backend == "ipc" or self._context.is_first_rank:  # CUDA IPC shares the memory of every rank's own device
                self._send_by_vllm()
        except Exception as error:
            if self._silent is None:
                raise
            raise self._silent from error  # what the communicator makes of a copy that is gone
        finally:
            gather_with_others(self._source.current)  # what this rank did not send, or no more because a copy is gone

    def _send_by_vllm(self) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        if self._trainer is None:
            info = TRAINERS[self._backend](self._context.rank, self._workers, self._source.weights)
            self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=self._copies, source=self._source)
        self._trainer.send_weights()


def _over_nccl(rank: int, workers: int, weights: Weights) -> Any:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(rank=rank, master_address="127.0.0.1", master_port=free_port(), world_size=1 + workers)


def _over_ipc(rank: int, workers: int, weights: Weights) -> Any:
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    largest = max(tensor.nbytes for tensor in weights.described().values())
    return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=max(PACKED_BYTES, largest))


TRAINERS: dict[str, Callable[[int, int, Weights], Any]] = {"nccl": _over_nccl, "ipc": _over_ipc}
"""From rank, receiving workers and weights to what vLLM's factory makes a trainer's side of."""


class Source:
    """vLLM's `WeightSource`: weights, described and then given out in the same order, in one pass for each time they are sent."""

    def __init__(self) -> None:
        self.weights = Weights([])
        self.current = iter(self.weights)

    def metadata(self) -> list[Any]:
        """Name, number format and shape of each."""
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights.described().items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.current


class Copies:
    """vLLM's `VLLMWeightSyncClient`: tells every copy at the same time, since they wait for each other; the first rank asks it."""

    def __init__(
        self, engines: Sequence[Receiver], tensor: int, on_silent: Callable[[EngineSilent], None] = lambda silent: None
    ) -> None:
        """`on_silent` is told of a copy that does not answer, while others may still wait for it."""
        self._engines, self._tensor, self._on_silent = engines, tensor, on_silent
        self.policy_version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Meet the trainer. Copies know nothing of each other, so each is told which ranks of the group are its own."""
        if "rank_offset" not in init_info:
            self._tell("init", [init_info] * len(self._engines))
            return
        first = init_info["rank_offset"]
        self._tell("init", [{**init_info, "rank_offset": first + place * self._tensor} for place in range(len(self._engines))])

    def start_weight_update(self) -> None:
        """The copies have no policy's weights from here on."""
        self._tell("start")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive some of the weights."""
        self._tell("update", [update_info] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Take up what was received, forget every cached prefix, and only then tell the policy's version."""
        self._tell("finish")

    def close(self) -> None:
        """Ask them no more."""
        for engine in self._engines:
            engine.close()

    def _tell(self, step: str, infos: Sequence[Mapping[str, Any]] | None = None) -> None:
        with ThreadPoolExecutor(max(1, len(self._engines))) as pool:
            asked = [
                pool.submit(self._tell_one, engine, step, info)
                for engine, info in zip(self._engines, infos or [{}] * len(self._engines), strict=True)
            ]
        for one in asked:
            one.result()

    def _tell_one(self, engine: Receiver, step: str, info: Mapping[str, Any]) -> None:
        try:
            engine.transfer(step, encoded(info), policy_version=self.policy_version)
        except EngineSilent as silent:
            self._on_silent(silent)
            raise
