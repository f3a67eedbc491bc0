"""`vllm` in a process of its own, seen from a rank: the engine that `vllm_worker.py` serves, over a socket of this machine.

Safe to use from several threads: each question has a connection to itself, and the engine batches what is asked at the same time.

Shapes: T tokens of one sequence, P positions of all sequences of a call, J tokens named at a position, K of the support.
"""

import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.tokenizers import ChatTokenizer
from .frames import Frame, ragged, receive, send
from .protocol import Capabilities, EngineSilent, Generation, Identity, SamplingSettings, StaleEngine, TopK, Traffic
from .supports import SLACK, invalid_mask, keep_valid, require_support

CAPABILITIES = Capabilities(full_vocabulary_scores=True, expert_choices=False, concurrent=True)
SCORE_TOKENS = 2**22  # token ids and log-probabilities of one answer: 50 MB


class ProcessEngine:
    """An engine behind a socket. See `protocol.py` for what each method promises."""

    def __init__(self, address: Path, *, folder: Path, tokenizer: ChatTokenizer, in_turns: bool = False, log: Path) -> None:
        """Connect, and wait until the engine answers.

        Args:
            address: of the socket.
            folder: of the model that it is asked for.
            in_turns: every call names the folder, because other models take turns on the engine.
            log: what the process writes, for messages.
        """
        self._address, self._folder, self._log = address, folder, log
        self._turn = {"folder": str(folder)} if in_turns else {}
        self._tokenizer = tokenizer
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self.capabilities = CAPABILITIES
        self.traffic = Traffic()
        self.policy_version = 0
        self._vocabulary = int(self._call("hello").words["vocabulary"])
        self._invalid_V = invalid_mask(self._vocabulary, tokenizer.invalid_ids, len(tokenizer.hf))

    def identity(self) -> Identity:
        """Who is answering."""
        words = self._call("hello").words
        return Identity(
            tokenizer_digest=self._tokenizer.digest,
            vocabulary=self._vocabulary,
            weights=words["folder"],
            policy_version=words["policy_version"],
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        limits: Sequence[int],
        sampling: SamplingSettings,
        stop_ids: Sequence[int],
        seed: int,
    ) -> list[Generation]:
        """Continue each prompt by at most its limit of tokens, until a stop token. Each row has random numbers of its own.

        Raises:
            StaleEngine: other weights than the trainer gave it have written.
        """
        assert len(prompts) == len(limits) and all(prompts) and all(limit >= 1 for limit in limits)
        if not prompts:
            return []
        words = {"temperature": sampling.temperature, "top_p": sampling.top_p, "stop_ids": list(stop_ids), "seed": seed}
        answer = self._ask("generate", words, {**ragged(prompts), "limits": torch.tensor(list(limits))})
        lengths = answer["lengths"].tolist()
        ids, logprobs = ([part.tolist() for part in answer[name].split(lengths)] for name in ("ids", "logprobs"))
        rows = zip(ids, logprobs, answer["stopped"].tolist(), strict=True)
        with self._lock:
            self.traffic.generated_tokens += sum(lengths)
        return [Generation(ids=tuple(each), logprobs=tuple(numbers), stopped=stopped) for each, numbers, stopped in rows]

    def score_top_k(self, sequences: Sequence[Sequence[int]], k: int) -> list[TopK]:
        """The k most likely valid tokens after every prefix of each sequence. Invalid ones are dropped, and more are asked for if
        too few are left.

        Raises:
            UserError: fewer than k ids are valid.
        """
        require_support(k, self._vocabulary - int(self._invalid_V.sum()), self._vocabulary, self._folder)
        found: list[TopK] = []
        for part in _parts(sequences, max(1, SCORE_TOKENS // (k + SLACK))):
            found += self._score_part(part, k)
        return found

    def _score_part(self, sequences: Sequence[Sequence[int]], k: int) -> list[TopK]:
        top = k + SLACK
        while True:
            top = min(top, self._vocabulary)
            ids_PJ, logprobs_PJ, lengths = self._scores(sequences, top)
            kept = keep_valid(ids_PJ[:, 1:], logprobs_PJ[:, 1:], self._invalid_V, k)  # the first is the sequence's own token
            if kept is not None:
                rows = zip(*(tensor.split(lengths) for tensor in kept), strict=True)
                return [TopK(ids_TK=ids_TK.clone(), logprobs_TK=logprobs_TK.clone()) for ids_TK, logprobs_TK in rows]
            assert top < self._vocabulary
            top *= 2

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """float32 [T-1] each: the log-probability of every token but the first."""
        if not sequences:
            return []
        _, logprobs_PJ, lengths = self._scores(sequences, 0)
        return [logprobs_T.clone() for logprobs_T in logprobs_PJ[:, 0].split(lengths)]

    def expert_choices(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Not said."""
        raise NotImplementedError("vLLM does not say which experts a token visits")

    def reload(self, folder: Path, *, policy_version: int) -> None:
        """Replace the weights by those of a folder, and forget every cached prefix; only then is the new version told."""
        self._call("reload", {"folder": str(folder), "policy_version": policy_version})
        self.policy_version = policy_version

    def transfer(self, step: str, info: Any, *, policy_version: int) -> None:
        """One step of a transfer of weights (`vllm_transfer.py`); the version is told after the last of them."""
        self._call("transfer", {"step": step, "info": info, "policy_version": policy_version})

    def close(self) -> None:
        """Leave; the engine goes on for others."""
        while self._idle:
            self._idle.pop().close()

    def _scores(self, sequences: Sequence[Sequence[int]], top: int) -> tuple[Tensor, Tensor, list[int]]:
        """ids_PJ, logprobs_PJ and how many positions each sequence has; the first column is the sequence's own token."""
        assert all(len(sequence) >= 2 for sequence in sequences)
        answer = self._ask("score", {"top": top}, ragged(sequences))
        with self._lock:
            self.traffic.scored_tokens += len(answer["ids"])
        return answer["ids"], answer["logprobs"], answer["lengths"].tolist()

    def _ask(self, name: str, words: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the model says, if it has the weights that it was given."""
        frame = self._call(name, words, tensors)
        if frame.words["policy_version"] != self.policy_version:
            raise StaleEngine(frame.words["policy_version"], self.policy_version)
        return frame.tensors

    def _call(self, name: str, words: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> Frame:
        question = Frame(words={"call": name, **self._turn, **(words or {})}, tensors=tensors or {})
        try:
            connection = self._connection()
            sent = send(connection, question)
            answer, received = receive(connection)
        except (EOFError, OSError) as error:
            raise engine_ended(self._log) from error
        with self._lock:
            self._idle.append(connection)
            self.traffic.sent_bytes += sent
            self.traffic.received_bytes += received
        return answer

    def _connection(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._address))
        return connection


def engine_ended(log: Path) -> EngineSilent:
    """The engine's process is gone: what was published is kept, and the step is rolled out anew."""
    return EngineSilent("the vLLM engine of this job", f"its process has ended (its log: {log})")


def _parts(sequences: Sequence[Sequence[int]], most_tokens: int) -> list[list[Sequence[int]]]:
    """Neighbours together, up to so many tokens (or one sequence)."""
    parts: list[list[Sequence[int]]] = []
    room = 0
    for sequence in sequences:
        if not parts or len(sequence) > room:
            parts.append([])
            room = most_tokens
        parts[-1].append(sequence)
        room -= len(sequence)
    return parts
