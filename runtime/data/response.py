"""Reading a turn by the `response_template` of a tokenizer: transformers' parser, within a limit of time.

What it does: the regular expressions of such a template come from whoever made the tokenizer, and meet whatever a model wrote; one
that goes through every way to fail, or that matches nothing for ever, would hold up a rollout for good. So each reading has a
deadline, which every search looks at. It holds in any thread, as a signal would not.
What it does not do: decide what a turn that was not read in time is (`parser.py`).
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import regex
from transformers.utils.chat_parsing.response_parser import ResponseParser
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

READ_SECONDS = 2.0  # a turn of 100,000 characters takes some milliseconds


def load_response(template: Any) -> ResponseTemplate:
    """The template, checked and compiled.

    Raises:
        ValueError, TypeError, KeyError, regex.error: it is none, or one that cannot be read within a limit of time.
    """
    loaded = load_response_template(template)
    for name, field in loaded.fields.items():
        if "tag_pattern" in str(field.content_args.get("value_parser")):
            raise ValueError(f"Field '{name}': a `tag_pattern` within a `value_parser` has no limit of time")
        if "tag_pattern" in field.content_args:
            regex.compile(field.content_args["tag_pattern"], regex.DOTALL)
    return loaded


def read_response(template: ResponseTemplate, text: str, prefix: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A turn's text as the fields of the template.

    Raises:
        TimeoutError: it took too long.
        Exception: whatever the parser raises on a text that is not of the form.
    """
    parser = _Parser(template, prefix, tools)
    parser.feed(text)
    return parser.finalize()[0]


class _Clock:
    """The time that one reading has."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + READ_SECONDS

    @property
    def left(self) -> float:
        """Seconds. Raises TimeoutError where there are none."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the response template took longer than {READ_SECONDS:g} s")
        return left

    def bounds(self, pattern: Any) -> "_Pattern | None":
        return None if pattern is None else _Pattern(pattern, self)


class _Pattern:
    """A compiled pattern, as far as transformers' parser uses one."""

    def __init__(self, pattern: Any, clock: _Clock) -> None:
        self._pattern, self._clock = pattern, clock

    def search(self, text: str, start: int = 0, **how: Any) -> Any:
        return self._pattern.search(text, start, timeout=self._clock.left, **how)

    def finditer(self, text: str) -> Any:
        return self._pattern.finditer(text, timeout=self._clock.left)


class _Parser(ResponseParser):
    """Each search has what is left of the time. Tags are gone over once before transformers does it, without a limit."""

    def __init__(self, template: ResponseTemplate, prefix: str, tools: Sequence[Mapping[str, Any]]) -> None:
        self._clock = clock = _Clock()
        fields = {
            name: replace(field, open_re=clock.bounds(field.open_re), close_re=clock.bounds(field.close_re))
            for name, field in template.fields.items()
        }
        bounded = replace(template, fields=fields, start_anchor_re=clock.bounds(template.start_anchor_re))
        super().__init__(bounded, prefix, tools=[dict(tool) for tool in tools])

    def _close_current(self, events: list[dict[str, Any]]) -> None:
        tags = self._spec.fields[self._current].content_args.get("tag_pattern") if self._opened and self._current else None
        if tags is not None:
            deque(regex.finditer(tags, self._body, flags=regex.DOTALL, timeout=self._clock.left), maxlen=0)
        super()._close_current(events)
