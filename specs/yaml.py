"""A strict subset of YAML, with the line and column of every key and value.

What it does not do: anchors, aliases, tags, merge keys, several documents, keys that are not text. Scalars follow the core rules
of YAML 1.2, so `1e-5` is a number and `no` is text. It walks parser events, which are neither recursive nor expanded, so a
hostile file costs no more than its size.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, cast

import yaml

from .build import Path
from .codes import summary
from .diagnostics import MOST_MISTAKES, Diagnostic, ExitCode, Span, UserError, split_lines

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_DIGITS = 30  # longer runs of digits are no number anyone means, and int() is quadratic in them

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_REORDERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # a reader would see another text than we do

_ADVICE = {
    "E0103": "write the value out",
    "E0104": "remove the tag and write a plain value",
    "E0105": "put the key into quotes, if it is meant",
    "E0106": "remove everything from this line on, or give it a file of its own",
    "E0107": "see the fields there are: polymath schema",
    "E0108": "move the data into files of their own and name their paths",
    "E0109": "remove the character, and save the file as UTF-8",
}
_OPENERS = ("flow", "quoted scalar", "simple key")  # what the parser was inside of when the mistake is where that began

_parse_events: Any = getattr(yaml, "parse")  # noqa: B009  (PyYAML has no types, and pyright is strict here)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where there is one: 27 times faster, same marks


def parse_events(text: str) -> Iterator[Any]:
    """PyYAML's events of a text. Raises yaml.YAMLError where it is no YAML."""
    return cast(Iterator[Any], _parse_events(text, Loader=_Loader))


@dataclass(frozen=True, slots=True)
class Spans:
    """Where keys and values stand."""

    file: str
    values: dict[Path, Span] = field(default_factory=dict[Path, Span])
    keys: dict[Path, Span] = field(default_factory=dict[Path, Span])

    def at(self, path: Path, *, key: bool = False) -> Span:
        """The span of a path; of what is not written, that of the nearest enclosing key."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        if path in first:
            return first[path]
        if path in second:
            return second[path]
        while path:
            path = path[:-1]
            for spans in (self.keys, self.values):
                if path in spans and path:
                    return spans[path]
        return Span(file=self.file, line=1, column=1, end_column=2)

    def override(self, path: Path, span: Span) -> None:
        """Let a path and all below it come from somewhere else."""
        for spans in (self.values, self.keys):
            for inner in [inner for inner in spans if inner[: len(path)] == path]:
                del spans[inner]
        self.values[path] = span
        self.keys[path] = span


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A parsed file. With diagnostics, its data is incomplete."""

    text: str
    data: Any
    spans: Spans
    diagnostics: tuple[Diagnostic, ...]


def read_file(path: FilePath, shown: str) -> Document:
    """Parse a file; `shown` is its name in messages.

    Raises:
        UserError: the file cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{shown} cannot be read: {reason}", exit_code=ExitCode.USAGE, fix="polymath init my.yaml writes one"
        ) from error
    try:
        text = raw[:MAX_BYTES].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_BYTES and error.start >= MAX_BYTES - 4:
            text = ""  # the cut fell inside a character
        else:
            line = raw[: error.start].count(b"\n") + 1
            return _failed(shown, "", "E0109", Span(file=shown, line=line, column=1, end_column=2), "this byte is not UTF-8")
    if len(raw) > MAX_BYTES:
        detail = f"a spec may hold {MAX_BYTES // 1024} KiB"
        return _failed(shown, text, "E0108", Span(file=shown, line=1, column=1, end_column=2), detail)
    return read_text(text, shown)


def read_text(text: str, shown: str) -> Document:
    """Parse a text; `shown` is its name in messages."""
    rows = split_lines(text)
    for number, row in enumerate(rows, 1):
        found = _REORDERING.search(row)
        if found:
            span = Span(file=shown, line=number, column=found.start() + 1, end_column=found.end() + 1)
            return _failed(shown, text, "E0109", span, f"the invisible character U+{ord(found.group()):04X} reorders text")
    reader = _Reader(shown, rows)
    try:
        for event in parse_events(text):
            if not reader.take(event) or len(reader.diagnostics) >= MOST_MISTAKES:
                break
    except yaml.MarkedYAMLError as error:
        return _broken(shown, text, rows, error)
    except yaml.YAMLError as error:  # a character that YAML forbids
        position = int(getattr(error, "position", 0) or 0)
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        span = Span(file=shown, line=line, column=column, end_column=column + 1)
        return _failed(shown, text, "E0109", span, "this character is not allowed in YAML")
    return Document(text=text, data=reader.root, spans=reader.spans, diagnostics=tuple(reader.diagnostics))


def scalar(text: str) -> Any:
    """The value of an unquoted scalar, by the core rules of YAML 1.2. Numbers without a finite value stay text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) <= MAX_DIGITS and _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else text
    return text


def _broken(shown: str, text: str, rows: Sequence[str], error: Any) -> Document:
    """Broken grammar: where it began, where that can be told from where the parser gave up."""
    problem, context = str(error.problem or "it cannot be read"), str(error.context or "")
    mark: Any = error.problem_mark or error.context_mark
    if error.context_mark and any(word in context for word in _OPENERS):
        gave_up = mark.line + 1
        mark = error.context_mark
        problem = f"{context}: {problem}" + (f" on line {gave_up}" if gave_up > mark.line + 1 else "")
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    row = rows[line - 1] if line <= len(rows) else ""
    fix = "look for a bracket, quote or colon that is missing here, or another indentation than above"
    if "\t" in row[: len(row) - len(row.lstrip())]:
        fix = "indent with spaces, not tabs"
    elif "flow" in context:
        fix = f"close the `{row[column - 1 : column]}` that opens here"
    elif "quoted" in context:
        fix = "close the quote that opens here"
    elif "simple key" in context:
        name = re.match(r"\s*(?:- )?([\w-]+)\s*[:=]?\s*(.*)", row)
        fix = f"write `{name[1]}: {name[2]}`, with a colon and a space" if name else fix
    elif "mapping values are not allowed" in problem:
        fix = "put text that holds `: ` into quotes, or begin a new line, indented like its neighbours"
    span = Span(file=shown, line=line, column=column, end_column=column + 1)
    return _failed(shown, text, "E0101", span, problem, fix)


def _failed(shown: str, text: str, code: str, span: Span, detail: str, fix: str | None = None) -> Document:
    found = Diagnostic(code=code, summary=summary(code), span=span, detail=detail, fix=fix or _ADVICE.get(code))
    return Document(text=text, data=None, spans=Spans(shown), diagnostics=(found,))


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read."""

    container: Any
    path: Path
    key: str | None = None
    awaits_value: bool = False

    @property
    def is_list(self) -> bool:
        return isinstance(self.container, list)


class _Reader:
    """Builds plain data and spans from parser events."""

    def __init__(self, shown: str, rows: list[str]) -> None:
        self.shown = shown
        self.rows = rows
        self.spans = Spans(shown)
        self.diagnostics: list[Diagnostic] = []
        self.root: Any = None
        self.stack: list[_Open] = []
        self.documents = 0

    def take(self, event: Any) -> bool:
        """Take one event; False when there is no use in going on."""
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.report("E0106", event, "a spec is one document")
                return False
        elif isinstance(event, yaml.AliasEvent):
            self.report("E0103", event, "aliases are not part of the language")
            self.put(None, event)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self.stack.pop()
        elif isinstance(event, (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            return self.node(event)
        return True

    def node(self, event: Any) -> bool:
        if event.anchor is not None:
            self.report("E0103", event, "anchors are not part of the language")
        if event.tag not in (None, "!"):
            self.report("E0104", event, "a spec cannot name types or code")
        if isinstance(event, yaml.ScalarEvent):
            self.put(scalar(event.value) if event.implicit[0] else event.value, event)
            return True
        if len(self.stack) >= MAX_DEPTH:
            self.report("E0107", event, f"at most {MAX_DEPTH} levels")
            return False
        container: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.stack.append(_Open(container, self.put(container, event)))
        return True

    def put(self, value: Any, event: Any) -> Path:
        """Place a value, or remember it as the key of the next one; returns its path."""
        if not self.stack:
            self.root = value
            self.spans.values[()] = self.span(event)
            return ()
        top = self.stack[-1]
        if top.is_list:
            items: list[Any] = top.container
            path = (*top.path, len(items))
            items.append(value)
        elif not top.awaits_value:
            top.key, top.awaits_value = self.read_key(top, value, event), True
            return top.path
        else:
            top.awaits_value = False
            if top.key is None:  # a key that was refused
                return (*top.path, "?")
            path = (*top.path, top.key)
            top.container[top.key] = value
        self.spans.values[path] = self.span(event)
        return path

    def read_key(self, top: _Open, value: Any, event: Any) -> str | None:
        if not isinstance(value, str):
            self.report("E0105", event, "keys are words")
            return None
        path = (*top.path, value)
        if path in self.spans.keys:
            line = self.spans.keys[path].line
            self.report("E0102", event, f"first set on line {line}", f"keep this one or the one on line {line}")
            return None
        self.spans.keys[path] = self.span(event)
        return value

    def span(self, event: Any) -> Span:
        start: Any = event.start_mark
        end: Any = event.end_mark
        line: int = start.line
        row = self.rows[line] if line < len(self.rows) else ""
        end_column = end.column if end.line == start.line else len(row)
        return Span(file=self.shown, line=start.line + 1, column=start.column + 1, end_column=max(end_column, start.column + 1) + 1)

    def report(self, code: str, event: Any, detail: str, fix: str | None = None) -> None:
        found = Diagnostic(code=code, summary=summary(code), span=self.span(event), detail=detail, fix=fix or _ADVICE.get(code))
        self.diagnostics.append(found)
