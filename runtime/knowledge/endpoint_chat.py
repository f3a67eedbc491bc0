"""A chat model behind any OpenAI-compatible endpoint, for the roles of self-play.

What it does: asks with tools, and reads a message and its token counts strictly. An answer of another form, again and again, is the
solver's failure and an outcome of the attempt; an endpoint that is not there, or refuses, stops the run, which can go on.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ...specs.training import Sampling
from ..data.trajectories import RowError, chat_messages
from ..engines.endpoint import Endpoint, HttpClient, Patience, ServiceFailure, Unreadable, shown
from ..worlds.protocol import Message
from .player import SolverFailure, estimate_tokens
from .roles import Reply

SAMPLING = Sampling()
PATIENCE = Patience(attempts=5, unreadable=2, answer_seconds=600.0, total_seconds=1800.0)
MOST_BYTES = 4 << 20
AT_ONCE = 8  # questions in flight, per rank and role
PATH = "/chat/completions"


class EndpointChat:
    """Asks one endpoint for the next message of a conversation. Safe to use from several threads."""

    at_once = AT_ONCE

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        sampling: Sampling = SAMPLING,
        response_tokens: int = 4096,
        patience: Patience = PATIENCE,
        patience_seconds: float | None = None,
    ) -> None:
        """`patience_seconds` is that of `patience` in all, where it is another."""
        self.name = model
        patience = patience if patience_seconds is None else replace(patience, total_seconds=patience_seconds)
        self._client = HttpClient(endpoint, patience, at_once=AT_ONCE)
        self._sampling = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": response_tokens}

    def reply(self, messages: Sequence[Message], tools: Sequence[Any], seed: int) -> Reply:
        """The next message. The seed stays here: not every endpoint takes one.

        Raises:
            SolverFailure: what the endpoint says cannot be read, every time.
            UserError: it does not answer, or refuses (exit 6).
        """
        question = {"model": self.name, "messages": list(messages), **self._sampling}
        if tools:
            question["tools"] = [dict(tool) for tool in tools]
        path = self._client.endpoint.path + PATH
        try:
            return self._client.ask(path, question, lambda chunks: _read(chunks, messages), most_bytes=MOST_BYTES)
        except ServiceFailure as failure:
            if failure.kind == "unreadable":
                raise SolverFailure("the endpoint wrote nonsense") from failure
            raise UserError(
                f"the model at {self._client.endpoint} does not answer: {failure}",
                exit_code=ExitCode.FAILED,
                fix="mend the endpoint, its model or its key, and start again: what was finished is kept",
            ) from failure


def _read(chunks: Iterator[bytes], asked: Sequence[Message]) -> Reply:
    body = b"".join(chunks)
    try:
        found = json.loads(body)
        message = found["choices"][0]["message"]
        (*_, message) = chat_messages({"messages": [{"role": "user", "content": ""}, {**message, "role": "assistant"}]})
    except (RowError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise Unreadable(f"not a chat completion: {shown(body)}") from error
    usage = found.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("prompt_tokens", "completion_tokens")]
    read, written = (one if isinstance(one, int) and not isinstance(one, bool) and one >= 0 else None for one in counts)
    # An endpoint that does not count is counted for: a budget must hold all the same.
    return Reply(
        message=message,
        read_tokens=estimate_tokens(json.dumps(list(asked))) if read is None else read,
        written_tokens=estimate_tokens(json.dumps(message)) if written is None else written,
    )
