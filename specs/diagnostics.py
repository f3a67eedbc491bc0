"""How Polymath speaks of a user's mistakes: where, what, why and how to mend it.

A `Diagnostic` is collected, so that all mistakes are shown at once; a `UserError` ends the command. An assertion or any other
exception is a bug of ours and never a user's mistake.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum


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
        return f"error: {self.message}" + (f"\n  = {self.fix}" if self.fix else "")


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
    span = diagnostic.span
    lines = [f"{span}: error[{diagnostic.code}]: {diagnostic.summary}"]
    source = text.splitlines() if text is not None else []
    if span.line and span.line <= len(source):
        number, row = str(span.line), source[span.line - 1]
        gutter = " " * len(number)
        before, marked = row[: span.column - 1], row[span.column - 1 : max(span.end_column - 1, span.column)]
        lead = "".join("\t" if character == "\t" else " " * _width(character) for character in before)
        carets = "^" * max(1, sum(_width(character) for character in marked))
        lines += [f"{gutter} |", f"{number} | {_visible(row)}", f"{gutter} | {lead}{carets} {diagnostic.detail}"]
    else:
        gutter = ""
        lines.append(f"  {diagnostic.detail}")
    if diagnostic.fix:
        lines.append(f"{gutter} = {diagnostic.fix}")
    return "\n".join(lines)


def render_all(diagnostics: Sequence[Diagnostic], sources: Mapping[str, str]) -> str:
    """All mistakes in the order of the file, and their number."""
    ordered = sorted(diagnostics, key=lambda one: (one.span.file, one.span.line, one.span.column, one.code))
    count = len(ordered)
    parts = [render(one, sources.get(one.span.file)) for one in ordered]
    return "\n\n".join([*parts, f"{count} mistake{'s' if count != 1 else ''}; exit code {int(ExitCode.SPEC)}"])


def _width(character: str) -> int:
    if unicodedata.combining(character) or not character.isprintable():
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _visible(row: str) -> str:
    """The row without characters that would rearrange a terminal."""
    return "".join(character for character in row if character == "\t" or character.isprintable())
