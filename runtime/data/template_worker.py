"""The other end of `template_process.py`: runs a tokenizer's templates, in a process of its own that may be killed.

What it does: renders and reads with transformers' own functions, for as long as a request allows and within a limit of memory that
it sets itself. What it does not do: import torch or the rest of the product, or keep anything from one request to the next but
compiled templates.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import regex
from transformers.utils.chat_parsing import parse_response
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template
from transformers.utils.chat_template_utils import render_jinja_template

MEMORY_MIB = 512  # beyond what the process takes before it runs anything
SHOWN = 300  # characters of what a template says is wrong
RESULT, FAILURE = b"r", b"f"  # how an answer begins


def main() -> None:
    """Answer requests (JSON) until the other end is closed."""
    channel = Connection(int(sys.argv[1]))
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = own + MEMORY_MIB * 2**20
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.send_bytes(b"")
    while True:
        try:
            request = json.loads(channel.recv_bytes())
        except EOFError:
            return
        # The kernel ends the process by this signal: no handler, because Python would run it only between two of its own steps.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        answer = answer_to(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.send_bytes(answer)


def answer_to(request: dict[str, Any]) -> bytes:
    """The text that was asked for, or why there is none."""
    try:
        text = ACTIONS[request["action"]](**request["arguments"])
        if len(text) > request["characters"]:
            return FAILURE + b"it wrote more than %d characters" % request["characters"]
        return RESULT + text.encode("utf-8", "surrogatepass")
    except MemoryError:
        return FAILURE + b"it took more than %d MiB of memory" % MEMORY_MIB
    except RecursionError:
        return FAILURE + b"it calls itself without end, or is nested too deeply"
    except Exception as error:  # whatever a template makes Python raise
        why = f"{type(error).__name__}: {error}"[:SHOWN]
        return FAILURE + "".join(one if one.isprintable() else " " for one in why).encode()


def render(template: str, messages: Any, tools: Any, generation_prompt: bool, special_tokens: dict[str, Any]) -> str:
    """A conversation, laid out by a chat template."""
    (text,), _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=generation_prompt, **special_tokens
    )
    return text


def check(template: Any) -> str:
    """Nothing, where a response template can be used."""
    for field in load_response_template(template).fields.values():
        if "tag_pattern" in field.content_args:
            regex.compile(field.content_args["tag_pattern"], regex.DOTALL)
    return ""


def read(template: Any, text: str, prefix: str, tools: Any) -> str:
    """A turn, read by a response template: its fields as JSON."""
    return json.dumps(parse_response(text, _loaded(json.dumps(template)), prefix=prefix, tools=tools))


@lru_cache
def _loaded(template: str) -> ResponseTemplate:
    return load_response_template(json.loads(template))


ACTIONS: dict[str, Callable[..., str]] = {"render": render, "check": check, "read": read}


if __name__ == "__main__":
    main()
