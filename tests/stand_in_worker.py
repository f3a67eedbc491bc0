"""Stands for `vllm_worker` where vLLM is not installed: the same frames and the same words, answered by the embedded engine.

Started by an interpreter that `interpreter` writes and POLYMATH_VLLM_PYTHON names, in a process of its own, as the real one is.
The same function makes interpreters of other files that stand for the worker.
"""

import argparse
import contextlib
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from polymath.runtime.data.tokenizers import load_tokenizer_folder
from polymath.runtime.engines.frames import Frame, ragged, receive, send, sequences_of
from polymath.runtime.engines.group import end_group
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.weights import Weights
from polymath.runtime.launch.watch import exit_with_launcher
from safetensors.torch import load_file


def interpreter(folder: Path, file: str = __file__) -> Path:
    """An executable that runs a file, this one if no other is named, whatever it is asked to run."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(file).resolve()} "$@"\n')
    script.chmod(0o755)
    return script


class StandIn:
    """One model at a time, and whoever asks it."""

    def __init__(self, folder: str) -> None:
        self._lock = threading.Lock()
        self._open(folder)

    def _open(self, folder: str) -> None:
        tokenizer = load_tokenizer_folder(Path(folder))
        self.folder, self.version = folder, 0
        self.engine = TransformersEngine(
            Path(folder), tokenizer_digest="", pad_id=tokenizer.pad_id, invalid_ids=(), num_tokens=tokenizer.vocabulary_size
        )

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                frame, _ = receive(connection)
                with self._lock:
                    answer = self.answer(frame.words, frame.tensors)
                send(connection, answer)

    def answer(self, words: Any, tensors: Any) -> Frame:
        call, folder = words["call"], words.get("folder")
        if call == "reload":
            shards = [load_file(path) for path in sorted(Path(folder).glob("*.safetensors"))]
            self.engine.load_weights(Weights(shards), policy_version=words["policy_version"])
            self.folder, self.version = folder, words["policy_version"]
        elif folder not in (None, self.folder):
            self._open(folder)
        told = {"vocabulary": self.engine.identity().vocabulary, "folder": self.folder, "policy_version": self.version}
        if call in ("hello", "reload"):
            return Frame(words=told)
        sequences = sequences_of(tensors)
        if call == "score":
            return Frame(words=told, tensors=self._scores(sequences, words["top"]))
        written = self.engine.generate(
            sequences,
            limits=tensors["limits"].tolist(),
            sampling=SamplingSettings(temperature=words["temperature"], top_p=words["top_p"]),
            stop_ids=words["stop_ids"],
            seed=words["seed"],
        )
        logprobs = torch.tensor([logprob for one in written for logprob in one.logprobs])
        stopped = torch.tensor([one.stopped for one in written])
        return Frame(words=told, tensors={**ragged([one.ids for one in written]), "logprobs": logprobs, "stopped": stopped})

    def _scores(self, sequences: list[list[int]], top: int) -> dict[str, torch.Tensor]:
        own = torch.cat(self.engine.score_tokens(sequences)).unsqueeze(1)
        ids = torch.tensor([one for sequence in sequences for one in sequence[1:]]).unsqueeze(1)
        tops = self.engine.score_top_k(sequences, top) if top else []
        return {
            "ids": torch.cat([ids, torch.cat([one.ids_TK for one in tops])], dim=1) if top else ids,
            "logprobs": torch.cat([own, torch.cat([one.logprobs_TK for one in tops])], dim=1) if top else own,
            "lengths": torch.tensor([len(sequence) - 1 for sequence in sequences]),
        }


def main() -> None:
    exit_with_launcher(end_group)
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int)
    parser.add_argument("--model")
    options, _ = parser.parse_known_args()
    listener, stand_in = socket.socket(fileno=options.socket), StandIn(options.model)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=stand_in.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
