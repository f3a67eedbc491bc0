"""One question to a language model behind an OpenAI-compatible chat-completions endpoint, answered in strict JSON."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .endpoint import HttpClient, Unreadable, shown

MOST_BYTES = 1 << 20  # of an answer; a useful one is far shorter
PATH = "/chat/completions"
T = TypeVar("T")


def ask_json(client: HttpClient, model: str, messages: Sequence[Mapping[str, str]], read: Callable[[Any], T]) -> T:
    """What the model says, at temperature 0.

    Args:
        read: makes the answer from its JSON; raises Unreadable for one of another form.

    Raises:
        ServiceFailure: no attempt gave an answer.
    """
    request = {"model": model, "messages": list(messages), "temperature": 0, "response_format": {"type": "json_object"}}
    path = client.endpoint.path + PATH
    return client.ask(path, request, lambda chunks: read(_written(chunks)), most_bytes=MOST_BYTES)


def _written(chunks: Iterator[bytes]) -> Any:
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
