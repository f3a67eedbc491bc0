"""The process around vLLM: takes frames from a socket, batches whatever is asked at the same time, and answers in tensors.

    python -m polymath.runtime.engines.vllm_worker --socket FD --model FOLDER --dtype float32 ...

What it does: generation with a seed per row, top-k and token scores, and weights by folder or by transfer, with one engine that
all ranks of a job share. A call may name the folder of its model; calls of other folders wait until the engine is idle, and then
take their turn.
What it does not do: listen to anything but the socket it was given, or outlive the process that started it.

Shapes: T tokens of one sequence, J columns of a score: the token itself, then the most likely ones.
"""

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..launch.watch import exit_with_launcher
from .frames import WORKING, Frame, receive, send, sequences_of
from .group import end_group
from .protocol import row_seed

WORKING_SECONDS = 5.0  # between two words to whoever waits for an answer


@dataclass(kw_only=True, eq=False)
class Call:
    """One question of one connection."""

    frame: Frame
    connection: socket.socket
    outputs: dict[int, Any] = field(default_factory=dict)
    rows: int = 0

    @property
    def name(self) -> str:
        return self.frame.words["call"]


class Worker:
    """One engine and whoever asks it."""

    def __init__(self, engine: Any, folder: str, listener: socket.socket) -> None:
        """
        Args:
            engine: vLLM's `LLMEngine`.
            folder: of the model that it has.
        """
        self._calls: queue.Queue[Call] = queue.Queue()
        self._engine, self._folder = engine, folder
        self._version = 0
        self._waiting: deque[Call] = deque()
        self._running: dict[str, tuple[Call, int]] = {}
        self._asked, self._told = 0, time.monotonic()
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            self._gather()
            self._admit()
            if self._running:
                for output in self._engine.step():
                    if output.finished:
                        self._collect(output)
                self._tell_working()

    def _tell_working(self) -> None:
        """Tell whoever waits, now and then, that the engine makes steps: a long answer is no hang."""
        now = time.monotonic()
        if now - self._told >= WORKING_SECONDS:
            self._told = now
            calls = [call for call, row in self._running.values() if row not in call.outputs] + list(self._waiting)
            for call in {id(call): call for call in calls}.values():
                self._answer(call, WORKING, {})

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._listen, args=(connection,), name="listen", daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(EOFError, OSError):  # a rank that left asks nothing more
            while True:
                self._calls.put(Call(frame=receive(connection)[0], connection=connection))

    def _gather(self) -> None:
        """Take what was asked; wait for it where there is nothing else to do."""
        if not self._running and not self._waiting:
            self._waiting.append(self._calls.get())
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.append(self._calls.get_nowait())

    def _admit(self) -> None:
        """Begin every call that the loaded weights can answer. New weights wait for an idle engine, and later calls for them."""
        kept: deque[Call] = deque()
        while self._waiting:
            call = self._waiting.popleft()
            folder, replaces = call.frame.words.get("folder"), call.name in ("reload", "transfer")
            if replaces or folder not in (None, self._folder):
                if self._running or kept:
                    kept.append(call)
                    if replaces:
                        break
                    continue
                if call.name == "transfer":
                    self._transfer(call.frame.words)
                else:
                    self._load(folder, call.frame.words.get("policy_version", self._version))
            self._begin(call)
        self._waiting = kept + self._waiting

    def _load(self, folder: str, policy_version: int) -> None:
        self._folder = ""  # of no model, until all of it is there
        self._engine.collective_rpc("sync_weights", args=(folder,))
        self._tell(folder, policy_version)

    def _transfer(self, words: Mapping[str, Any]) -> None:
        """A step of a transfer of weights from the trainer's device."""
        if words["step"] == "start":
            self._folder = ""
        self._engine.collective_rpc("transfer_weights", args=(words["step"], words["info"]))
        if words["step"] == "finish":
            self._tell("the trainer", words["policy_version"])

    def _tell(self, origin: str, policy_version: int) -> None:
        """What the weights are called, now that all of them are there."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache, which belongs to the weights that it had")
        self._folder, self._version = origin, policy_version

    def _begin(self, call: Call) -> None:
        from vllm import SamplingParams, TokensPrompt

        words, tensors = call.frame.words, call.frame.tensors
        if call.name in ("hello", "reload", "transfer"):
            vocabulary = self._engine.model_config.get_vocab_size()
            self._answer(call, {"vocabulary": vocabulary, "folder": self._folder, "policy_version": self._version}, {})
            return
        sequences = sequences_of(tensors)
        call.rows = len(sequences)
        limits = tensors["limits"].tolist() if call.name == "generate" else [1] * call.rows
        for row, (sequence, limit) in enumerate(zip(sequences, limits, strict=True)):
            asked = {"max_tokens": limit, "detokenize": False, "flat_logprobs": True, "ignore_eos": True}
            if call.name == "generate":
                settings = SamplingParams(
                    **asked,
                    temperature=words["temperature"],
                    top_p=words["top_p"],
                    seed=row_seed(words["seed"], row),
                    stop_token_ids=words["stop_ids"],
                    logprobs=0,
                )
            else:
                settings = SamplingParams(**asked, temperature=0.0, prompt_logprobs=words["top"])
            self._asked += 1
            name = str(self._asked)
            self._engine.add_request(name, TokensPrompt(prompt_token_ids=sequence), settings)
            self._running[name] = (call, row)

    def _collect(self, output: Any) -> None:
        call, row = self._running.pop(output.request_id)
        call.outputs[row] = output
        if len(call.outputs) < call.rows:
            return
        outputs = [call.outputs[row] for row in range(call.rows)]
        if call.name == "generate":
            self._answer(call, {"policy_version": self._version}, _generations(outputs))
        else:
            self._answer(call, {"policy_version": self._version}, _scores(outputs))

    def _answer(self, call: Call, words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        with contextlib.suppress(OSError):  # a rank that left wants no answer
            send(call.connection, Frame(words=words, tensors=tensors))


def _generations(outputs: list[Any]) -> dict[str, Tensor]:
    written = [output.outputs[0] for output in outputs]
    return {
        "ids": torch.tensor([one for each in written for one in each.token_ids], dtype=torch.int64),
        "lengths": torch.tensor([len(each.token_ids) for each in written]),
        "logprobs": torch.tensor([one for each in written for one in each.logprobs.logprobs], dtype=torch.float32),
        "stopped": torch.tensor([each.finish_reason == "stop" for each in written]),
    }


def _scores(outputs: list[Any]) -> dict[str, Tensor]:
    """`ids` and `logprobs` [sum of T-1, J] of all sequences one after the other. vLLM's first position holds nothing."""
    found = [output.prompt_logprobs for output in outputs]
    positions = [len(output.prompt_token_ids) - 1 for output in outputs]
    each = list(zip(found, positions, strict=True))
    ids = torch.cat([torch.tensor(one.token_ids, dtype=torch.int64).view(count, -1) for one, count in each])
    logprobs = torch.cat([torch.tensor(one.logprobs, dtype=torch.float32).view(count, -1) for one, count in each])
    return {"ids": ids, "logprobs": logprobs, "lengths": torch.tensor(positions)}


def main() -> None:
    """Start the engine and serve."""
    exit_with_launcher(end_group)
    from vllm.engine.arg_utils import EngineArgs  # the module itself imports without vLLM, as every module of ours does
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="polymath.runtime.engines.vllm_worker"))
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of a listening socket of whoever starts this")
    options = parser.parse_args()
    arguments = EngineArgs.from_cli_args(options)
    arguments.skip_tokenizer_init = True  # ids in, ids out
    listener = socket.socket(fileno=options.socket)
    Worker(LLMEngine.from_engine_args(arguments), str(arguments.model), listener).serve()


if __name__ == "__main__":
    main()
