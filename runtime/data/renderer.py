"""The one way from messages to token ids: append-only segments.

What it does: a conversation is blocks that the model did not write (the opening, or the observations after a turn) and turns that
it did. Each is laid out by the chat template on its own and tokenised on its own, so that an episode built turn by turn has the
same ids as the whole conversation rendered afterwards, and nothing is ever tokenised a second time. What it does not do: read what
the model wrote (`parser.py`), or cut anything to a length.

Segments of `[system, user, assistant, tool, assistant]`:

    open(system, user)        <bos> <system> ... <user> ... <model>
    turn(assistant)           content, tool calls, <end>                   the only ids that are marked as written
    extend(tool)              closing piece, <tool> ... <model>
    turn(assistant)           content, tool calls, <end>

A segment's layout depends only on the shape of its messages, so it is rendered once per shape and then filled in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ..worlds.protocol import Message
from .parser import parse, positional_values
from .template import ChatTemplate, Sentinels, Slot, sentinel, split_slots
from .tokenizers import ChatTokenizer

SHAPES_CACHED = 4096
TOOL_SETS_CACHED = 1024
USER, ASSISTANT = {"role": "user", "content": sentinel(0)}, {"role": "assistant", "content": sentinel(1)}  # before an extension


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens."""

    ids: tuple[int, ...]
    written: tuple[bool, ...]  # the model wrote this token


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment's layout: its text, with slots, and the text as pieces that are ready to be filled in."""

    text: str
    pieces: tuple[tuple[int, ...] | Slot, ...]


class Renderer:
    """Renders conversations with one set of tools.

    Args:
        tokenizer: the model's.
        tools: OpenAI function schemas, as the world or the data row gives them.

    Raises:
        UserError: exit code 3; the chat template is not append-only, or fails.
    """

    def __init__(self, tokenizer: ChatTokenizer, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.tokenizer = tokenizer
        self.tools = tuple(tools)
        self._compact = tokenizer.call_form == "compact"
        masked = Sentinels(2, tokenizer.control_texts)  # 0 and 1 stand for the turns before an extension
        self._masked_tools = masked.put_deep(self.tools, keep_identifiers=True)
        self._tool_values = tuple(masked.values)
        self._first_index = 2 + len(masked.values)
        self._end_of_turn = tokenizer.hf.convert_ids_to_tokens(tokenizer.end_of_turn_id)
        self._segment = lru_cache(SHAPES_CACHED)(self._lay_out)
        self._check_append_only = lru_cache(SHAPES_CACHED)(self._compare_with_template)
        self._offering = lru_cache(TOOL_SETS_CACHED)(lambda tools: Renderer(tokenizer, json.loads(tools)))
        self._probe()

    def offering(self, tools: Sequence[Mapping[str, Any]] | None) -> "Renderer":
        """The renderer of the same tokenizer that offers these tools; itself where there are none of one's own.

        Raises:
            UserError: exit code 3; as the constructor does.
        """
        if tools is None:
            return self
        return self._offering(json.dumps(list(tools), allow_nan=False))

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation. What follows the last turn that ends it is left out.

        Raises:
            UserError: exit code 3; the template rewrites history on a conversation of this shape.
            ValueError: a message cannot be rendered, such as a tool call whose arguments are not an object.
        """
        blocks = _blocks(messages)
        if not blocks or blocks[0][0] == "turn":
            raise ValueError("a conversation begins with a message that the model did not write")
        ids: list[int] = []
        written: list[bool] = []
        layout: list[tuple[str, str]] = []
        for number, (kind, block) in enumerate(blocks):
            if kind != "turn" and number + 1 == len(blocks):
                kind += "_last"
            shape, values = self._mask(block)
            layout.append((kind, shape))
            segment_ids = self._fill(self._segment(kind, shape), values)
            ids += segment_ids
            written += [kind == "turn"] * len(segment_ids)
        self._check_append_only(tuple(layout))
        return Rendered(tuple(ids), tuple(written))

    def open(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of an episode: the opening messages and the mark after which the model writes."""
        shape, values = self._mask(messages)
        return self._fill(self._segment("open", shape), values)

    def extend(self, messages: Sequence[Message]) -> list[int]:
        """What comes after the model's end of turn: its closing piece, the observations, and the mark for its next turn."""
        shape, values = self._mask(messages)
        return self._fill(self._segment("extend", shape), values)

    def turn(self, message: Message) -> list[int]:
        """The ids by which a model would have written a message, end of turn included."""
        shape, values = self._mask([message])
        return self._fill(self._segment("turn", shape), values)

    def require_readable_calls(self) -> None:
        """Refuse to offer tools where what the template writes for a call is not read as that call.

        Raises:
            UserError: exit code 3.
        """
        if not self.tools:
            return
        name, form = self.tools[0].get("function", self.tools[0])["name"], self.tokenizer.call_form
        call = {"type": "function", "function": {"name": name, "arguments": "{}"}}
        written = self.turn({"role": "assistant", "content": "", "tool_calls": [call]})
        if [one["function"]["name"] for one in self.parse(written).get("tool_calls", ())] != [name]:
            how = f"calls have the form `{form}`, and one" if form else "a call"
            raise UserError(
                f"tokenizer {self.tokenizer.name} cannot call tools: {how} of {name} by its chat template is not read as one",
                exit_code=ExitCode.SPEC,
                fix="take a tokenizer whose template writes calls as Qwen's do, or one with a `response_template`",
            )

    def parse(self, ids: Sequence[int]) -> Message:
        """The message that the model wrote. A call that cannot be read is one without a name, which the world answers."""
        return parse(self.tokenizer, self.tools, ids)

    def _mask(self, messages: Sequence[Message]) -> tuple[str, list[str]]:
        """The shape of messages, as JSON with sentinels, and the strings that the sentinels stand for."""
        masked = Sentinels(self._first_index, self.tokenizer.control_texts)
        shape = [masked.put_message(self._in_schema_order(message)) for message in messages]
        return json.dumps(shape, ensure_ascii=False), masked.values

    def _in_schema_order(self, message: Message) -> Message:
        if not self._compact or not message.get("tool_calls"):
            return message
        calls = [{"function": positional_values(call["function"], self.tools)} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}

    def _fill(self, segment: _Segment, values: Sequence[str]) -> list[int]:
        """Ids of a segment with its strings filled in."""
        ids: list[int] = []
        text_ids = self.tokenizer.text_ids
        for piece in segment.pieces:
            if isinstance(piece, Slot):
                own = piece.index - self._first_index
                value = values[own] if own >= 0 else self._tool_values[piece.index - 2]
                ids.extend(text_ids(json.dumps(value, ensure_ascii=False)[1:-1] if piece.quoted else value))
            else:
                ids.extend(piece)
        return ids

    def _lay_out(self, kind: str, shape: str) -> _Segment:
        """Lay out a segment by the template, next to stand-ins for what comes before it (cached as `_segment`)."""
        messages: list[Message] = json.loads(shape)
        if kind == "open":
            text = self._text(messages, generation_prompt=True)
        elif kind == "open_last":
            text = self._text(messages, generation_prompt=False)
        elif kind == "turn":
            after = self._text([USER, *messages], generation_prompt=False)
            text, _ = self._split_end(_rest(after, self._before_turn, self.tokenizer.template))
        else:
            after = self._text([USER, ASSISTANT, *messages], generation_prompt=kind == "extend")
            text = _rest(after, self._before_extension, self.tokenizer.template)
        literal_ids = self.tokenizer.literal_ids
        pieces = tuple(piece if isinstance(piece, Slot) else literal_ids(piece) for piece in split_slots(text))
        return _Segment(text, pieces)

    @cached_property
    def _before_turn(self) -> str:
        return self._text([USER], generation_prompt=True)

    @cached_property
    def _before_extension(self) -> str:
        return self._split_end(self._text([USER, ASSISTANT], generation_prompt=False))[0]

    def _text(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        return self.tokenizer.template.text(messages, self._masked_tools, generation_prompt=generation_prompt)

    def _split_end(self, text: str) -> tuple[str, str]:
        """Cut behind the last end of turn: what comes after it closes the turn and is not the model's."""
        head, mark, closing = text.rpartition(self._end_of_turn)
        if not mark:
            raise UserError(
                f"the chat template of tokenizer {self.tokenizer.name} writes no {self._end_of_turn} after an assistant's turn",
                exit_code=ExitCode.SPEC,
                fix="end every assistant's turn with the same control token",
            )
        return head + mark, closing

    def _compare_with_template(self, layout: tuple[tuple[str, str], ...]) -> None:
        """Refuse a template that lays the whole out otherwise than its segments (cached as `_check_append_only`)."""
        whole = self._text(list(chain.from_iterable(json.loads(shape) for _, shape in layout)), generation_prompt=False)
        if layout[-1][0] == "turn":
            whole, _ = self._split_end(whole)
        if whole != "".join(self._segment(kind, shape).text for kind, shape in layout):
            raise self.tokenizer.template.refuse_rewriting()

    def _probe(self) -> None:
        """Try the template on one conversation with everything in it, before anything is trained on it."""
        call = {"type": "function", "function": {"name": "probe", "arguments": "{}"}} if self.tokenizer.call_form else None
        acts: Message = {"role": "assistant", "content": "" if call else "a", **({"tool_calls": [call]} if call else {})}
        observes: Message = {"role": "tool" if call else "user", "content": "o"}
        says: Message = {"role": "assistant", "content": "a"}
        asks: Message = {"role": "user", "content": "u"}
        self.render([asks, says, asks, acts, observes, acts, observes, says])


def _rest(text: str, beginning: str, template: ChatTemplate) -> str:
    if not text.startswith(beginning):
        raise template.refuse_rewriting()
    return text[len(beginning) :]


def _blocks(messages: Sequence[Message]) -> list[tuple[str, list[Message]]]:
    """Cut a conversation into ("open", ...), ("turn", [assistant]), ("extend", ...), ("turn", ...), ...

    Between two turns there is always an extension, if an empty one: it holds the closing piece and the mark of the next turn.
    """
    blocks: list[tuple[str, list[Message]]] = []
    for message in messages:
        if message["role"] == "assistant":
            if blocks and blocks[-1][0] == "turn":
                blocks.append(("extend", []))
            blocks.append(("turn", [message]))
        elif blocks and blocks[-1][0] != "turn":
            blocks[-1][1].append(message)
        else:
            blocks.append(("extend" if blocks else "open", [message]))
    return blocks
