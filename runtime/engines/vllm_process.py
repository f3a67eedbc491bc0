"""`vllm` in a process of its own, seen from a rank: the engine that `vllm_worker.py` serves, over a socket of this machine.

Safe to use from several threads: each question has a connection to itself, and the engine batches what is asked at the same time.

Shapes: T tokens of one sequence, P positions of all sequences of a call, J tokens named at a position, K of the support.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ..data.tokenizers import ChatTokenizer
from .answers import continuation, require_scores, require_tensors
from .endpoint import NoWatch, Unreadable, Watch
from .frames import WORKING, Frame, ragged, receive, send
from .protocol import Capabilities, EngineSilent, Generation, Identity, SamplingSettings, StaleEngine, TopK, Traffic
from .served_engine import PATIENCE
from .supports import SLACK, invalid_mask, keep_valid, require_support

CAPABILITIES = Capabilities(full_vocabulary_scores=True, expert_choices=False, concurrent=True)
SCORE_TOKENS = 2**22  # token ids and log-probabilities of one answer: 50 MB
TOKEN_BYTES = 16  # at most, of a token and its log-probability; and of what is told of a row
FRAME_BYTES = 2**16  # at most, of what stands around an answer's tensors
QUIET_SECONDS = 30.0  # without a word, until whoever watches is told; a worker that makes steps has one every 5
SHOWN = 8  # lengths, in a message
T = TypeVar("T")


class ProcessEngine:
    """An engine behind a socket. See `protocol.py` for what each method promises."""

    def __init__(
        self,
        address: Path,
        *,
        folder: Path,
        tokenizer: ChatTokenizer,
        in_turns: bool = False,
        log: Path,
        watch: Watch | None = None,
    ) -> None:
        """Connect, and wait until the engine answers.

        Args:
            address: of the socket.
            folder: of the model that it is asked for.
            in_turns: every call names the folder, because other models take turns on the engine.
            log: what the process writes, for messages.
            watch: told that the engine makes no step.

        Raises:
            EngineSilent: it does not answer, as for every other call.
        """
        self._watch: Watch = watch or NoWatch()
        self._address, self._folder, self._log = address, folder, log
        self._turn = {"folder": str(folder)} if in_turns else {}
        self._tokenizer = tokenizer
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()
        self.capabilities = CAPABILITIES
        self.traffic = Traffic()
        self.policy_version = 0
        self._vocabulary = self._told(self._call("hello"), "vocabulary")
        self._invalid_V = invalid_mask(self._vocabulary, tokenizer.invalid_ids, len(tokenizer.hf))

    def identity(self) -> Identity:
        """Who is answering."""
        frame = self._call("hello")
        return Identity(
            tokenizer_digest=self._tokenizer.digest,
            vocabulary=self._vocabulary,
            weights=str(frame.words.get("folder")),
            policy_version=self._told(frame, "policy_version"),
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

        def read(answer: Mapping[str, Tensor]) -> list[Generation]:
            vector = {"ids": torch.int64, "lengths": torch.int64, "logprobs": torch.float32, "stopped": torch.bool}
            require_tensors(answer, **{name: (dtype, 1) for name, dtype in vector.items()})
            stopped = answer["stopped"].tolist()
            if not len(answer["lengths"]) == len(stopped) == len(prompts):
                raise Unreadable(
                    f"{len(answer['lengths'])} rows and {len(stopped)} ends of them, and {len(prompts)} were asked for"
                )
            rows = zip(_rows(answer, "ids"), _rows(answer, "logprobs"), stopped, limits, strict=True)
            return [
                continuation(ids, logprobs, stopped=stopped, limit=limit, stop_ids=stop_ids, vocabulary=self._vocabulary)
                for ids, logprobs, stopped, limit in rows
            ]

        asked = {**ragged(prompts), "limits": torch.tensor(list(limits))}
        found = self._ask("generate", words, asked, read, TOKEN_BYTES * (sum(limits) + len(limits)))
        with self._lock:
            self.traffic.generated_tokens += sum(len(one.ids) for one in found)
        return found

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
        if step == "finish":
            self.policy_version = policy_version

    def close(self) -> None:
        """Leave; the engine goes on for others."""
        while self._idle:
            self._idle.pop().close()

    def _scores(self, sequences: Sequence[Sequence[int]], top: int) -> tuple[Tensor, Tensor, list[int]]:
        """ids_PJ, logprobs_PJ and how many positions each sequence has; the first column is the sequence's own token."""
        assert all(len(sequence) >= 2 for sequence in sequences)
        lengths = [len(sequence) - 1 for sequence in sequences]
        own_P = torch.tensor([one for sequence in sequences for one in sequence[1:]])

        def read(answer: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            require_tensors(answer, ids=(torch.int64, 2), logprobs=(torch.float32, 2), lengths=(torch.int64, 1))
            if answer["lengths"].tolist() != lengths:
                raise Unreadable(f"scores of {answer['lengths'].tolist()[:SHOWN]} positions for sequences of {lengths[:SHOWN]}")
            require_scores(answer["ids"], answer["logprobs"], own_P, 1 + top, self._vocabulary)
            return answer["ids"], answer["logprobs"]

        most_bytes = TOKEN_BYTES * (sum(lengths) * (1 + top) + len(lengths))
        ids_PJ, logprobs_PJ = self._ask("score", {"top": top}, ragged(sequences), read, most_bytes)
        with self._lock:
            self.traffic.scored_tokens += len(ids_PJ)
        return ids_PJ, logprobs_PJ, lengths

    def _ask(
        self,
        name: str,
        words: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        read: Callable[[Mapping[str, Tensor]], T],
        most_bytes: int,
    ) -> T:
        """What the model says, if it has the weights that it was given.

        Args:
            read: makes it of the answer's tensors; raises Unreadable for those of another form.
            most_bytes: of the tensors.
        """
        frame = self._call(name, words, tensors, most_bytes)
        version = self._told(frame, "policy_version")
        if version != self.policy_version:
            raise StaleEngine(version, self.policy_version)
        try:
            return read(frame.tensors)
        except Unreadable as error:
            raise self._unusable(error) from error

    def _told(self, frame: Frame, name: str) -> int:
        """A number that every answer of this kind tells."""
        value = frame.words.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._unusable(Unreadable(f"an answer without `{name}`"))
        return value

    def _call(
        self,
        name: str,
        words: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        most_bytes: int = 0,
    ) -> Frame:
        question = Frame(words={"call": name, **self._turn, **(words or {})}, tensors=tensors or {})
        connection = self._connection()
        try:
            sent = send(connection, question)
            answer, received = self._answer(connection, most_bytes + FRAME_BYTES)
        except TimeoutError as error:
            connection.close()
            raise engine_hangs(self._log) from error
        except (EOFError, OSError) as error:
            connection.close()
            raise engine_ended(self._log) from error
        except Unreadable as error:
            connection.close()
            raise self._unusable(error) from error
        with self._lock:
            self._idle.append(connection)
            self.traffic.sent_bytes += sent
            self.traffic.received_bytes += received
        return answer

    def _answer(self, connection: socket.socket, most_bytes: int) -> tuple[Frame, int]:
        """The answer, and the bytes of all that came; as long as the engine makes steps, it is waited for."""
        received = 0
        while True:
            self._await(connection)
            frame, came = receive(connection, most_bytes)
            received += came
            if frame.words != WORKING:
                self._watch.answered()
                return frame, received

    def _await(self, connection: socket.socket) -> None:
        """Wait for a word, and tell now and then that there is none.

        Raises:
            TimeoutError: there was none for as long as any engine is waited for.
        """
        began, poll = time.monotonic(), select.poll()
        poll.register(connection, select.POLLIN)
        while not poll.poll(1000 * min(QUIET_SECONDS, PATIENCE.total_seconds)):
            seconds = time.monotonic() - began
            if seconds >= PATIENCE.total_seconds:
                raise TimeoutError
            self._watch.waiting(seconds, "it makes no step")

    def _connection(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE.total_seconds)  # for each piece of a frame
        try:
            connection.connect(str(self._address))
        except OSError as error:
            connection.close()
            raise engine_ended(self._log) from error
        return connection

    def _unusable(self, error: Unreadable) -> UserError:
        return UserError(
            f"the vLLM engine of this job gives no answer that can be used: {error}; nothing of this batch was trained on",
            exit_code=ExitCode.FAILED,
            fix=f"its log may say more ({self._log}); launch again: the batch is rolled out anew",
        )


def engine_ended(log: Path) -> EngineSilent:
    """The engine's process is gone: what was published is kept, and the step is rolled out anew."""
    return EngineSilent("the vLLM engine of this job", f"its process has ended (its log: {log})")


def engine_hangs(log: Path) -> EngineSilent:
    """The engine's process is there and does nothing; whoever started it ends it."""
    return EngineSilent("the vLLM engine of this job", f"no step of it in {PATIENCE.total_seconds:g} seconds (its log: {log})")


def _rows(answer: Mapping[str, Tensor], name: str) -> list[list[Any]]:
    """One of an answer's vectors, cut into rows.

    Raises:
        Unreadable: the rows are longer or shorter than it.
    """
    lengths = answer["lengths"].tolist()
    if any(length < 0 for length in lengths) or sum(lengths) != len(answer[name]):
        raise Unreadable(f"rows of {sum(lengths)} tokens, and {len(answer[name])} {name}")
    return [part.tolist() for part in answer[name].split(lengths)]


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
