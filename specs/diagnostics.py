"""How Polymath speaks of a user's mistakes: where, what, why and how to mend it.

A `Diagnostic` is collected, so that all mistakes are shown at once; a `UserError` ends the command. An assertion or any other
exception is a bug of ours and never a user's mistake.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from .locations import without_secrets

MOST_MISTAKES = 100  # shown at once; whoever makes more has another file in mind than a spec
WIDEST_ROW = 240  # characters of a line that are shown
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class ExitCode(IntEnum):
    """What the process tells its caller; the same for every verb."""

    OK = 0
    BUG = 1
    DIFF = 2
    SPEC = 3
    STALE = 4
    UNFIT = 5
    FAILED = 6
    INTERRUPTED = 7
    USAGE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A place in a spec. Lines and columns count from 1, columns in characters; line 0 is a place without lines (`--set ...`)."""

    file: str
    line: int
    column: int
    end_column: int  # exclusive; a span covers one line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnostic:
    """One mistake. The summary holds no text of the user's, so it becomes familiar; `codes.py` explains the code."""

    code: str
    summary: str
    span: Span
    detail: str
    fix: str | None = None


class UserError(Exception):
    """A mistake of the user's, or of the machine, that ends the command without a traceback."""

    def __init__(self, message: str, *, exit_code: int, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = ExitCode(exit_code)
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore_user_error, (self.message, int(self.exit_code), self.fix))

    def render(self) -> str:
        """The text for a terminal."""
        return without_secrets(f"error: {self.message}" + (f"\n  = {self.fix}" if self.fix else ""))


class SpecInvalid(UserError):
    """A spec with at least one mistake."""

    def __init__(self, diagnostics: Sequence[Diagnostic], sources: Mapping[str, str]) -> None:
        self.diagnostics = tuple(diagnostics)
        self.sources = sources
        super().__init__(render_all(self.diagnostics, sources), exit_code=ExitCode.SPEC)

    def render(self) -> str:
        """The text for a terminal."""
        return self.message


def _restore_user_error(message: str, exit_code: int, fix: str | None) -> UserError:
    return UserError(message, exit_code=exit_code, fix=fix)


def render(diagnostic: Diagnostic, text: str | None) -> str:
    """One mistake as text. `text` is the content of the file it lies in, if it lies in one."""
    span, rows = diagnostic.span, _rows(text or "")
    lines = [f"{span}: error[{diagnostic.code}]: {diagnostic.summary}"]
    if span.line and span.line <= len(rows):
        number, row = str(span.line), rows[span.line - 1]
        gutter = " " * len(number)
        row, start, end = _window(row, span.column - 1, max(span.end_column - 1, span.column))
        before, marked = row[:start], row[start:end]
        lead = "".join("\t" if character == "\t" else " " * _width(character) for character in before)
        carets = "^" * max(1, sum(_width(character) for character in marked))
        lines += [f"{gutter} |", f"{number} | {_visible(row)}", f"{gutter} | {lead}{carets} {diagnostic.detail}"]
    else:
        gutter = ""
        lines.append(f"  {diagnostic.detail}")
    if diagnostic.fix:
        lines.append(f"{gutter} = {diagnostic.fix}")
    return without_secrets("\n".join(lines))


def render_all(diagnostics: Sequence[Diagnostic], sources: Mapping[str, str]) -> str:
    """All mistakes in the order of the file, and their number."""
    ordered = sorted(diagnostics, key=lambda one: (one.span.file, one.span.line, one.span.column, one.code))
    parts = [render(one, sources.get(one.span.file)) for one in ordered[:MOST_MISTAKES]]
    count = len(parts)
    said = f"{count} mistake{'s' if count != 1 else ''}" if count < MOST_MISTAKES else f"the first {count} mistakes"
    return "\n\n".join([*parts, f"{said}; exit code {int(ExitCode.SPEC)}"])


@lru_cache(maxsize=4)  # a file is split once, not once for each of its mistakes
def _rows(text: str) -> list[str]:
    return split_lines(text)


def _window(row: str, start: int, end: int) -> tuple[str, int, int]:
    """The part of a long row around what is marked, and where the mark lies in it."""
    if len(row) <= WIDEST_ROW:
        return row, start, end
    first = max(0, min(start - WIDEST_ROW // 3, len(row) - WIDEST_ROW))
    shown = ("..." if first else "") + row[first : first + WIDEST_ROW] + ("..." if first + WIDEST_ROW < len(row) else "")
    moved = first - (3 if first else 0)
    return shown, start - moved, min(end - moved, len(shown))


def _width(character: str) -> int:
    if unicodedata.combining(character) or not character.isprintable():
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def split_lines(text: str) -> list[str]:
    """The lines of a file as YAML counts them."""
    return _LINE_BREAK.split(text)


def _visible(row: str) -> str:
    """The row without characters that would rearrange a terminal."""
    return "".join(character for character in row if character == "\t" or character.isprintable())
