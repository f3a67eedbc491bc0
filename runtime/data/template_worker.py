"""The other end of `template_process.py`: lays out conversations by chat templates, in a process of its own that may be killed.

What it does: renders with transformers' own function, for as long as a request allows and within a limit of memory that it sets
itself. What it does not do: import torch or the rest of the product, or keep anything from one request to the next but compiled
templates.
"""

import json
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

MEMORY_MIB = 512  # beyond what the process takes before it renders anything
SHOWN = 300  # characters of what a template says is wrong
TEXT, FAILURE = b"t", b"f"  # how an answer begins


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
        answer = render(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.send_bytes(answer)


def render(request: dict[str, Any]) -> bytes:
    """The text, or why there is none."""
    try:
        (text,), _ = render_jinja_template(
            [request["messages"]],
            tools=request["tools"],
            chat_template=request["template"],
            add_generation_prompt=request["generation_prompt"],
            **request["special_tokens"],
        )
        if len(text) > request["characters"]:
            return FAILURE + b"it wrote more than %d characters" % request["characters"]
        return TEXT + text.encode("utf-8", "surrogatepass")
    except MemoryError:
        return FAILURE + b"it took more than %d MiB of memory" % MEMORY_MIB
    except RecursionError:
        return FAILURE + b"it calls itself without end, or is nested too deeply"
    except Exception as error:  # whatever a template makes Python raise
        why = f"{type(error).__name__}: {error}"[:SHOWN]
        return FAILURE + "".join(one if one.isprintable() else " " for one in why).encode()


if __name__ == "__main__":
    main()
