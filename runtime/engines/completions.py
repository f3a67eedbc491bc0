"""Reading what vLLM's completions endpoint answers, piece by piece.

A scored position costs about 75 bytes of JSON for every token of its support, so that the answer about one long sequence can be far
larger than all that is made of it. Each position is handed on as it comes, and only the little around the positions is kept.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .answers import sound_logprobs
from .endpoint import Unreadable, shown

POSITIONS = '"prompt_logprobs":'
LONGEST_POSITION = 1 << 22  # characters of one position: the whole of a large vocabulary


@dataclass(frozen=True, slots=True)
class Position:
    """What a model says of the token at one position: some tokens, most likely first."""

    ids: list[int]
    logprobs: list[float]


OnPosition = Callable[[int, int, Position | None], None]
"""Takes the number of the prompt, the position in it, and what is said there; nothing is said of the first."""


def read_completions(chunks: Iterator[bytes], on_position: OnPosition | None = None) -> list[dict[str, Any]]:
    """The choices of an answer, in the order of its prompts, their positions left out.

    Args:
        on_position: takes the positions, in order within a prompt, the prompts in the order in which they come.

    Raises:
        Unreadable: the answer is none, or a log-probability is no finite number of at most 0.
    """
    text = _Text(chunks)
    around: list[str] = []  # the answer without its positions
    arrays = 0
    while (before := text.until(POSITIONS)) is not None:
        around += before, POSITIONS
        if text.next_character() != "[":  # null: nobody asked for them
            continue
        around.append("[]")
        for position, value in enumerate(text.array()):
            if on_position is not None:
                on_position(arrays, position, None if value is None else _position(value))
        arrays += 1
    around.append(text.rest())
    whole = "".join(around)
    try:
        choices = json.loads(whole)["choices"]
        if [choice["index"] for choice in choices] != list(range(len(choices))):
            raise KeyError("index")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"the answer is not a completion: {shown(whole.encode())}") from error
    if arrays not in (0, len(choices)):
        raise Unreadable(f"{arrays} of {len(choices)} completions have scores")
    return choices


def _position(value: Any) -> Position:
    try:
        found = sorted(((int(one), entry["logprob"]) for one, entry in value.items()), key=lambda pair: -pair[1])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"not the scores of a position: {json.dumps(value)[:200]}") from error
    return Position([one for one, _ in found], sound_logprobs([logprob for _, logprob in found]))


class _Text:
    """JSON text of which a part is there and the rest is to come."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0  # what is before `at` was read

    def until(self, mark: str) -> str | None:
        """What stands before the mark, which is passed over; None where there is no further one."""
        searched = self._at
        while (found := self._text.find(mark, searched)) < 0:
            kept = len(mark) - 1  # the mark may lie across two pieces
            searched = max(self._at, len(self._text) - kept) - self._at
            if not self._grow():
                return None
        before = self._text[self._at : found]
        self._at = found + len(mark)
        return before

    def next_character(self) -> str:
        """The next one that is no space; it stays."""
        while self._at == len(self._text) or self._text[self._at].isspace():
            if self._at < len(self._text):
                self._at += 1
            elif not self._grow():
                raise Unreadable("the answer breaks off")
        return self._text[self._at]

    def array(self) -> Iterator[Any]:
        """The values of the array that begins here."""
        self._at += 1
        if self.next_character() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            end = self.next_character()
            self._at += 1
            if end == "]":
                return
            if end != ",":
                raise Unreadable(f"not a list of positions: {shown(self._text[self._at - 1 :].encode())}")

    def _value(self) -> Any:
        self.next_character()
        while True:
            try:
                value, self._at = self._decode(self._text, self._at)
            except ValueError:  # half a value, if there is more to come
                if len(self._text) - self._at > LONGEST_POSITION or not self._grow():
                    raise Unreadable(f"not the scores of a position: {shown(self._text[self._at :].encode())}") from None
            else:
                return value

    def rest(self) -> str:
        """All that is left."""
        while self._grow():
            pass
        return self._text[self._at :]

    def _grow(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._text, self._at = self._text[self._at :] + self._utf8.decode(chunk), 0
        return True
