"""A client of a judge: a language model behind an OpenAI-compatible chat-completions endpoint, which answers in strict JSON.

What it does: sends a question and reads the answer as JSON of the form that is asked for.
What it does not do: know what is judged (`../judging.py`), or guess: when the attempts are used up the run stops. No verdict is
ever made up.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, TypeVar

from ...specs.diagnostics import ExitCode, UserError
from .endpoint import Endpoint, HttpClient, Patience, ServiceFailure, Unreadable, shown

PATIENCE = Patience(attempts=5, unreadable=5, answer_seconds=120.0, total_seconds=900.0)
MOST_BYTES = 1 << 20  # of an answer; a verdict is a few dozen
AT_ONCE = 8  # questions in flight, per rank
PATH = "/chat/completions"
T = TypeVar("T")


def at_once(action: Callable[[T], None], items: Sequence[T]) -> None:
    """Do it for every item, a few at a time. The first error ends those that have not begun."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") as pool:
        pending = [pool.submit(action, item) for item in items]
        try:
            for one in as_completed(pending):
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class JudgeClient:
    """Asks one endpoint. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, model: str, patience_seconds: float = PATIENCE.total_seconds) -> None:
        self.model = model
        self._client = HttpClient(endpoint, replace(PATIENCE, total_seconds=patience_seconds), at_once=AT_ONCE)

    def ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[Any], T]) -> T:
        """The verdict on one question.

        Args:
            messages: the conversation.
            read: makes the verdict from the answer's JSON; raises Unreadable for one of another form.

        Raises:
            UserError: exit code 6. The endpoint refused, or gave no verdict in any attempt; it is named, with the last cause.
        """
        request = {"model": self.model, "messages": list(messages), "temperature": 0, "response_format": {"type": "json_object"}}
        try:
            return self._client.ask(
                self._client.endpoint.path + PATH, request, lambda chunks: read(_verdict(chunks)), most_bytes=MOST_BYTES
            )
        except ServiceFailure as failure:
            raise UserError(
                f"the judge at {self._client.endpoint}{PATH} gave no verdict: {failure}",
                exit_code=ExitCode.FAILED,
                fix="mend the endpoint, its model or its key, and launch again: verdicts that were given are kept",
            ) from failure


def _verdict(chunks: Iterator[bytes]) -> Any:
    """The JSON that the model wrote, from an answer of the endpoint."""
    body = b"".join(chunks)
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise Unreadable(f"the endpoint's answer is not a chat completion: {shown(body)}") from error
    try:
        return json.loads(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"the model's answer is not JSON: {shown(str(content).encode())}") from error
