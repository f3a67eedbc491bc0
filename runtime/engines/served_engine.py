"""An engine that somebody serves: a client of vLLM's OpenAI-compatible endpoint, token ids in and token ids out.

What it does: asks `/completions` for continuations and for what the model says of a prompt, checks that the answer is about the
question (its length, the token that stands at each position, the range of every number) and makes tensors of it at once.
What it does not do: start the server, send it text, or take a score that is not of the form that was asked for. Scores of the whole
vocabulary, and of ids that one may choose, are beyond the endpoint.

Shapes: T tokens of one sequence, K tokens of the support.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...specs.diagnostics import ExitCode, UserError
from ..data.tokenizers import ChatTokenizer
from .answers import continuation, require_ids
from .completions import Position, read_completions
from .endpoint import HttpClient, Patience, ServiceFailure, Unreadable
from .protocol import Capabilities, EngineInterrupted, EngineSilent, Generation, Identity, SamplingSettings, TopK, Traffic, row_seed
from .supports import require_support
from .weights import Weights

PATIENCE = Patience(attempts=1_000, unreadable=3, answer_seconds=900.0, total_seconds=900.0)
AT_ONCE = 64  # requests that are out, per rank
SLACK = 8  # tokens asked for beyond k: as many of them as may never be written can be dropped
SCORED_POSITIONS = 4_096  # of one request, where a single sequence is not longer
POSITION_BYTES = 160  # at most, of the JSON of one token at one position (75 are usual), and of one that was generated
ANSWER_BYTES = 1 << 16  # at most, of what stands around the positions
T = TypeVar("T")
U = TypeVar("U")


class ServedEngine:
    """An `Engine`. See `protocol.py` for what each method promises. Safe to use from several threads."""

    def __init__(self, client: HttpClient, model: str, tokenizer: ChatTokenizer, *, owner: str, vocabulary: int) -> None:
        """Nothing is asked yet.

        Args:
            model: its name at the endpoint.
            tokenizer: whose ids are sent; `handshake.py` proves that the server's is the same.
            owner: who is served, for messages, such as "teacher `searcher`".
            vocabulary: rows of the model's output head.
        """
        self.client, self.model, self.owner = client, model, owner
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._invalid = tokenizer.invalid_ids | frozenset(range(len(tokenizer.hf), vocabulary))
        self.capabilities = Capabilities(full_vocabulary_scores=False, expert_choices=False, concurrent=True)
        self.policy_version = 0
        self.traffic = Traffic()
        self._counting = threading.Lock()

    def identity(self) -> Identity:
        """Who is answering."""
        return Identity(
            tokenizer_digest=self._tokenizer.digest,
            vocabulary=self._vocabulary,
            weights=f"`{self.model}` at {self.client.endpoint}",
            policy_version=self.policy_version,
        )

    def close(self) -> None:
        """Nothing is held: whoever serves goes on."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        limits: Sequence[int],
        sampling: SamplingSettings,
        stop_ids: Sequence[int],
        seed: int,
    ) -> list[Generation]:
        """Continue each prompt by at most its limit of tokens, until a stop token.

        Raises:
            EngineInterrupted: the server gave up a request.
            EngineSilent: it does not answer any more.
            UserError: it refuses, or answers in another form.
        """
        settings = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,  # all that the model's folder may say of sampling is said here
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(stop_ids),
            "ignore_eos": True,  # the stop tokens alone end a turn
            "logprobs": 0,  # of the tokens themselves, raw
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "cache_salt": f"version-{self.policy_version}",  # keys and values of other weights are never taken up
        }

        def one(item: tuple[int, Sequence[int], int]) -> Generation:
            row, prompt, limit = item
            question = {"prompt": list(prompt), "max_tokens": limit, "seed": row_seed(seed, row), **settings}
            most_bytes = ANSWER_BYTES + POSITION_BYTES * (limit + len(prompt))
            found = self._complete(
                question, lambda chunks: _generation(read_completions(chunks), limit, stop_ids, self._vocabulary), most_bytes
            )
            with self._counting:
                self.traffic.generated_tokens += len(found.ids)
            return found

        return self._each(one, [(row, *pair) for row, pair in enumerate(zip(prompts, limits, strict=True))])

    def score_top_k(self, sequences: Sequence[Sequence[int]], k: int) -> list[TopK]:
        """The k most likely valid tokens after every prefix of each sequence, with their log-probabilities.

        Raises:
            EngineSilent: the server does not answer any more.
            UserError: it refuses, or answers in another form; or fewer than k ids are valid.
        """
        require_support(k, self._vocabulary - len(self._invalid), self._vocabulary, self.owner)

        def group(rows: Sequence[Sequence[int]]) -> list[TopK]:
            with contextlib.suppress(_TooFew):
                return self._support(rows, k, min(SLACK, len(self._invalid)))
            return self._support(rows, k, len(self._invalid))

        return [top for tops in self._each(group, list(_groups(sequences))) for top in tops]

    def _support(self, rows: Sequence[Sequence[int]], k: int, slack: int) -> list[TopK]:
        """As `score_top_k`, of the k + `slack` most likely tokens. Raises _TooFew where fewer than k of them may be written."""
        asked = min(self._vocabulary, k + slack)
        tops = [
            TopK(ids_TK=torch.empty(len(row) - 1, k, dtype=torch.int64), logprobs_TK=torch.empty(len(row) - 1, k)) for row in rows
        ]

        def take(row: int, position: int, found: Position) -> None:
            most_likely = zip(found.ids[:asked], found.logprobs, strict=False)  # the token that stands there may come after them
            kept = [pair for pair in most_likely if pair[0] not in self._invalid][:k]
            if len(kept) < k:
                raise _TooFew
            ids, logprobs = zip(*kept, strict=True)
            tops[row].ids_TK[position - 1] = torch.tensor(ids)
            tops[row].logprobs_TK[position - 1] = torch.tensor(logprobs)

        self._score(rows, asked, take)
        return tops

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """float32 [T-1] each: the log-probability of every token but the first.

        Raises:
            EngineSilent: the server does not answer any more.
            UserError: it refuses, or answers in another form.
        """

        def group(rows: Sequence[Sequence[int]]) -> list[Tensor]:
            scores = [torch.empty(len(row) - 1) for row in rows]

            def take(row: int, position: int, found: Position) -> None:
                scores[row][position - 1] = found.logprobs[found.ids.index(rows[row][position])]

            self._score(rows, 0, take)
            return scores

        return [score for scores in self._each(group, list(_groups(sequences))) for score in scores]

    def expert_choices(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Not for a served engine: see `capabilities`."""
        raise NotImplementedError("a served engine does not tell which experts a token visits")

    def load_weights(self, weights: Weights, *, policy_version: int) -> None:
        """Not for an engine that somebody else serves."""
        raise NotImplementedError("whoever serves the engine decides on its weights")

    def _score(self, rows: Sequence[Sequence[int]], asked: int, take: Callable[[int, int, Position], None]) -> None:
        """Hand on what the model says of every position of some sequences but the first; again from the start after a failure."""
        question = {"prompt": [list(row) for row in rows], "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": asked}

        def read(chunks: Iterator[bytes]) -> None:
            reader = _ScoreReader(rows, asked, self._vocabulary, take)
            reader.finish(read_completions(chunks, reader))

        positions = sum(len(row) for row in rows)
        self._complete(question, read, ANSWER_BYTES * len(rows) + POSITION_BYTES * positions * (asked + 2))
        with self._counting:
            self.traffic.scored_tokens += positions - len(rows)

    def _complete(self, question: Mapping[str, Any], read: Callable[[Iterator[bytes]], T], most_bytes: int) -> T:
        path = f"{self.client.endpoint.path}/completions"
        try:
            return self.client.ask(path, {"model": self.model, **question}, read, most_bytes=most_bytes)
        except ServiceFailure as failure:
            raise self.failure(failure) from failure
        finally:
            self.traffic.sent_bytes, self.traffic.received_bytes = self.client.sent_bytes, self.client.received_bytes

    def failure(self, failure: ServiceFailure) -> UserError:
        """What to tell the user of it."""
        who = f"the engine of {self.owner} at {self.client.endpoint}"
        if failure.kind == "silent":
            return EngineSilent(who, str(failure))
        verb = "refuses" if failure.kind == "refused" else "gives no answer that can be used"
        return UserError(
            f"{who} {verb}: {failure}; nothing of this batch was trained on",
            exit_code=ExitCode.FAILED,
            fix="mend the service and launch again: the batch is rolled out anew",
        )

    def _each(self, action: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Do it for every item, as many at once as may be out. The first error ends those that have not begun."""
        if len(items) == 1:
            return [action(items[0])]
        with ThreadPoolExecutor(min(self.client.at_once, max(1, len(items))), thread_name_prefix="engine") as pool:
            pending = [pool.submit(action, item) for item in items]
            done, rest = wait(pending, return_when=FIRST_EXCEPTION)
            for one in rest:
                one.cancel()
            for one in done:
                if not one.cancelled() and one.exception() is not None:
                    one.result()
            return [one.result() for one in pending]


def _groups(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Neighbours whose tokens together stay within what one request may ask (or one sequence alone)."""
    group: list[Sequence[int]] = []
    tokens = 0
    for sequence in sequences:
        assert len(sequence) >= 2
        if group and tokens + len(sequence) > SCORED_POSITIONS:
            yield group
            group, tokens = [], 0
        group.append(sequence)
        tokens += len(sequence)
    if group:
        yield group


class _TooFew(Exception):
    """Too many of the most likely tokens are ones that the assistant may never write."""


class _ScoreReader:
    """Takes the positions of an answer, each only if it is about the question."""

    def __init__(
        self, rows: Sequence[Sequence[int]], asked: int, vocabulary: int, take: Callable[[int, int, Position], None]
    ) -> None:
        self._rows, self._asked, self._vocabulary, self._take = rows, asked, vocabulary, take
        self._seen = [0] * len(rows)

    def __call__(self, row: int, position: int, found: Position | None) -> None:
        if row >= len(self._rows) or position >= len(self._rows[row]):
            raise Unreadable("scores of more positions than there are")
        if (found is None) != (position == 0):
            raise Unreadable(f"position {position} has {'no' if found is None else 'a'} score")
        self._seen[row] += 1
        if found is None:
            return
        if len(found.ids) not in (max(1, self._asked), self._asked + 1) or len(set(found.ids)) < len(found.ids):
            raise Unreadable(f"scores of {len(found.ids)} tokens at position {position}, and {self._asked} were asked for")
        require_ids(found.ids, self._vocabulary)
        if self._rows[row][position] not in found.ids:
            raise Unreadable(f"the scores at position {position} are not of the token that stands there")
        self._take(row, position, found)

    def finish(self, choices: Sequence[Any]) -> None:
        """The answer has come to its end."""
        lengths = [len(row) for row in self._rows]
        if len(choices) != len(lengths) or self._seen != lengths:
            raise Unreadable(f"scores of {self._seen} positions for sequences of {lengths} tokens")


def _generation(choices: Sequence[Mapping[str, Any]], limit: int, stop_ids: Sequence[int], vocabulary: int) -> Generation:
    """The one continuation of an answer.

    Raises:
        EngineInterrupted: the server gave it up.
        Unreadable: it is none.
    """
    (choice,) = choices or [{}]
    ids, logprobs, reason = choice.get("token_ids"), choice.get("logprobs"), choice.get("finish_reason")
    if reason == "abort":
        raise EngineInterrupted("the engine gave a continuation up")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(ids, list) or not isinstance(values, list):
        raise Unreadable("a continuation without ids or log-probabilities")
    stopped = reason == "stop"
    return continuation(ids, values, stopped=stopped, limit=limit, stop_ids=stop_ids, vocabulary=vocabulary)
