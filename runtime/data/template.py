"""A chat template that sees only sentinels where the data's strings go.

What it does: puts a sentinel in place of every string that data brings (contents, names, arguments, tool descriptions), lets the
template lay the conversation out, and cuts its output into literal text, which may hold control tokens, and slots, which may not.
What it does not do: tokenise (`renderer.py`), or let a template change a content: `content | trim` leaves the content as it is.

A string of the data can therefore never become a control token, whatever the template does with it. Templates run in a process of
their own, within limits (`template_process.py`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from ...specs.diagnostics import ExitCode, UserError
from ..worlds.protocol import Message
from .template_process import TEMPLATES, TemplateFailed

# \x02 and \x03 cannot be typed in by data, because no string of the data is ever shown to the template; in a JSON text the
# template's `tojson` writes them escaped, which tells how the slot must be filled.
SLOT = re.compile("\x02([0-9]+)\x03|\\\\u0002([0-9]+)\\\\u0003")
IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a string of the data. In `quoted` slots it is escaped as inside a JSON string."""

    index: int
    quoted: bool


def sentinel(index: int) -> str:
    """What the template sees instead of string number `index`."""
    return f"\x02{index}\x03"


def split_slots(text: str) -> list[str | Slot]:
    """Cut a rendered text into literal pieces and slots, in order."""
    pieces: list[str | Slot] = []
    end = 0
    for match in SLOT.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        raw, quoted = match.groups()
        pieces.append(Slot(int(quoted if raw is None else raw), raw is None))
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    return pieces


class ChatTemplate:
    """The template of a tokenizer, with its name for messages to the user."""

    def __init__(self, hf: PreTrainedTokenizerFast, name: str) -> None:
        if not isinstance(hf.chat_template, str):
            raise UserError(
                f"tokenizer {name} has no chat template (or several)",
                exit_code=ExitCode.SPEC,
                fix="put the one to use into chat_template.jinja beside tokenizer.json",
            )
        if SLOT.search(hf.chat_template) or "\x02" in hf.chat_template:
            raise self._refused(name, "it holds control characters")
        self.hf = hf
        self.name = name

    def text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, generation_prompt: bool) -> str:
        """Lay out messages whose strings are sentinels.

        Raises:
            UserError: exit code 3; the template fails, or goes beyond a limit of time, memory or output.
        """
        try:
            text = TEMPLATES.run(
                "render",
                template=self.hf.chat_template,
                messages=list(messages),
                tools=list(tools) or None,
                generation_prompt=generation_prompt,
                special_tokens=self.hf.special_tokens_map,
            )
        except TemplateFailed as error:
            raise self._refused(self.name, str(error)) from error
        if "\\x02" in text:
            raise self._refused(self.name, "it prints a Python value instead of JSON; use the `tojson` filter")
        return text

    def refuse_rewriting(self) -> UserError:
        """The error for a template whose text of a conversation does not begin with the text of its beginning."""
        return self._refused(
            self.name,
            "it rewrites history: what it prints for a turn changes with the turns around it, so a rollout would not match",
        )

    @staticmethod
    def _refused(name: str, why: str) -> UserError:
        return UserError(
            f"the chat template of tokenizer {name} cannot be used: {why}",
            exit_code=ExitCode.SPEC,
            fix="mend chat_template.jinja in the tokenizer's folder, or name another tokenizer",
        )


class Sentinels:
    """Collects the data's strings of one block of messages and hands out sentinels for them."""

    def __init__(self, first_index: int, control_texts: Sequence[str]) -> None:
        self.first_index = first_index
        self.values: list[str] = []
        self._control_texts = control_texts

    def put(self, value: str) -> str:
        """The sentinel of a string; an empty one stays empty, because templates ask whether there is any text."""
        if not value:
            return value
        self.values.append(value)
        return sentinel(self.first_index + len(self.values) - 1)

    def put_deep(self, value: Any, *, keep_identifiers: bool = False) -> Any:
        """A JSON value with its strings replaced.

        Keys that are plain identifiers stay, because templates look them up; so do string values where `keep_identifiers`.
        """
        if isinstance(value, str):
            return value if keep_identifiers and self._is_plain(value) else self.put(value)
        if isinstance(value, Mapping):
            return {
                (key if self._is_plain(key) else self.put(key)): self.put_deep(item, keep_identifiers=keep_identifiers)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.put_deep(item, keep_identifiers=keep_identifiers) for item in value]
        return value

    def put_message(self, message: Message) -> Message:
        """A message with its strings replaced; tool arguments become an object, as templates expect."""
        masked: Message = {"role": message["role"], "content": self.put(message.get("content") or "")}
        if calls := message.get("tool_calls"):
            masked["tool_calls"] = [self._put_call(call) for call in calls]
        for key in ("reasoning_content", "name", "tool_call_id"):
            if isinstance(message.get(key), str):
                masked[key] = self.put(message[key])
        return masked

    def _put_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = self.put_deep(call_arguments(function["arguments"]))
        masked = {"type": "function", "function": {"name": self.put(function["name"]), "arguments": arguments}}
        if isinstance(call.get("id"), str):
            masked["id"] = self.put(call["id"])
        return masked

    def _is_plain(self, text: str) -> bool:
        return IDENTIFIER.fullmatch(text) is not None and not any(control in text for control in self._control_texts)


def call_arguments(arguments: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a tool call as an object.

    Raises:
        ValueError: they are not one.
    """
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value, Mapping):
        raise ValueError(f"arguments are {type(value).__name__}, not an object")
    return value
