"""A client of a judge: a language model behind an OpenAI-compatible chat-completions endpoint, which answers in strict JSON.

What it does: sends a question and reads the answer as JSON of the form that is asked for.
What it does not do: know what is judged (`../judging.py`), or guess: when the attempts are used up the run stops. No verdict is
ever made up.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, TypeVar

from ...specs.diagnostics import ExitCode, UserError
from .endpoint import Endpoint, HttpClient, Patience, ServiceFailure
from .json_chat import PATH, ask_json

PATIENCE = Patience(attempts=5, unreadable=5, answer_seconds=120.0, total_seconds=900.0)
AT_ONCE = 8  # questions in flight, per rank
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
        try:
            return ask_json(self._client, self.model, messages, read)
        except ServiceFailure as failure:
            raise UserError(
                f"the judge at {self._client.endpoint}{PATH} gave no verdict: {failure}",
                exit_code=ExitCode.FAILED,
                fix="mend the endpoint, its model or its key, and launch again: verdicts that were given are kept",
            ) from failure
