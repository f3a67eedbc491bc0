"""From a file to a checked `Spec`, with the place of everything in it.

`read_spec` collects what is wrong with the form of a spec; what its parts mean together is the compiler's to check.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal, cast, get_args, get_origin

from . import build
from .build import Path, Problem, fields_by_name, show_path, suggest, union_members
from .codes import summary
from .diagnostics import Diagnostic, ExitCode, Span, SpecInvalid, UserError
from .extend import EXTENDS, read_source
from .hints import well_formed
from .locations import with_secret
from .model import Spec
from .worlds import installed_locations
from .yaml import Document, Spans, read_text, scalar

KEYS_LOST = ("E0102", "E0105")  # mistakes of YAML after which a mapping lacks a key

__all__ = ["LoadedSpec", "Reading", "SpecInvalid", "load_spec", "read_spec"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedSpec:
    """A spec whose form is right."""

    spec: Spec
    spans: Spans
    root: FilePath  # folder that relative paths are meant against


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What was read, right or wrong. With diagnostics, `spec` is a guess that only serves to find more mistakes."""

    spec: Spec | None
    spans: Spans
    root: FilePath
    texts: Mapping[str, str]  # by file name as shown, for rendering
    diagnostics: tuple[Diagnostic, ...]
    mistaken: tuple[Path, ...]  # paths whose diagnostics would only repeat one of these


def load_spec(path: str | FilePath, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Read a spec with what it extends and apply `path=value` overrides.

    Raises:
        SpecInvalid: its form is wrong; carries every mistake.
        UserError: the file cannot be read, or an override is not `path=value`.
    """
    reading = read_spec(path, overrides)
    if reading.diagnostics or reading.spec is None:
        raise SpecInvalid(reading.diagnostics, reading.texts)
    return LoadedSpec(spec=reading.spec, spans=reading.spans, root=reading.root)


def read_spec(path: str | FilePath, overrides: Sequence[str] = (), written: Document | None = None) -> Reading:
    """Read a spec and collect every mistake of form; `written` is what it says where that is not the file itself."""
    shown = str(path)
    source = read_source(FilePath(path), shown, written)
    spans, root, texts, data = source.spans, FilePath(path).absolute().parent, source.texts, source.data
    if not source.readable:
        return Reading(spec=None, spans=spans, root=root, texts=texts, diagnostics=source.diagnostics, mistaken=())
    problems: list[tuple[Problem, Span | None]] = []
    for override in overrides:
        problem, span = _apply(override, data, spans)
        if problem:
            problems.append((problem, span))
    whole = all(found.code not in KEYS_LOST for found in source.diagnostics)
    if isinstance(data, dict):
        written_data = cast(dict[str, Any], data)
        problems += [(_secret(path), None) for path in with_secret(written_data, installed_locations(written_data))]
    names = {collection: _keys(data, collection) for collection in ("domains", "teachers")} if whole else {}
    spec, found = build.build(Spec, data, (), names)
    problems += [(problem, None) for problem in found]
    return Reading(
        spec=spec if isinstance(spec, Spec) else None,
        spans=spans,
        root=root,
        texts=texts,
        diagnostics=(*source.diagnostics, *(diagnose(problem, spans, span) for problem, span in problems)),
        mistaken=tuple(problem.path for problem, _ in problems),
    )


def diagnose(problem: Problem, spans: Spans, span: Span | None = None) -> Diagnostic:
    """Give a problem its place."""
    return Diagnostic(
        code=problem.code,
        summary=summary(problem.code),
        span=span or spans.at(problem.path, key=problem.at_key),
        detail=problem.detail,
        fix=problem.fix,
    )


def _secret(path: Path) -> Problem:
    fix = "leave it out; fsspec finds credentials in the environment and in the files of its providers"
    return Problem(code="E0322", path=path, detail="a password does not belong here", fix=fix)


def _keys(data: Any, collection: str) -> tuple[str, ...]:
    """The names in a collection; of a malformed one also what it was meant to be, so that using that is no further mistake."""
    inner = cast(dict[str, Any], data).get(collection) if isinstance(data, dict) else None
    names = tuple(cast(dict[str, Any], inner)) if isinstance(inner, dict) else ()
    return tuple(dict.fromkeys((*names, *(well_formed(name) for name in names))))


def _apply(override: str, data: Any, spans: Spans) -> tuple[Problem | None, Span]:
    """Set one value in the data, and say so in the spans."""
    name, equals, text = override.partition("=")
    span = Span(file=f"--set {override}", line=0, column=1, end_column=2)
    if not equals or not name:
        raise UserError(f"--set {override}: not of the form path=value", exit_code=ExitCode.USAGE)
    value: Any = scalar(text)
    inner: list[Path] = []
    if text[:1] in ("[", "{", '"', "'"):
        document: Document = read_text(text, span.file)
        if document.diagnostics:
            return Problem(code="E0101", path=(), detail=document.diagnostics[0].detail), span
        value, inner = document.data, list(document.spans.values)
    if name == EXTENDS:
        detail = "what a spec extends is read from its file; this would be ignored"
        return Problem(code="E0303", path=(), detail=detail), span
    parts = name.replace("[", ".").replace("]", "").split(".")
    here: Any = data
    kind: Any = Spec
    path: Path = ()
    for position, part in enumerate(parts):
        known, kind = _step(kind, here, part)
        if known is not None:
            guess = suggest(part, known)
            fix = f"did you mean `{show_path((*path, guess))}`?" if guess else None
            choices = ", ".join(f"`{one}`" for one in known) or "nothing"
            where = f"`{show_path(path)}`" if path else "a spec"
            return Problem(code="E0210", path=(), detail=f"{where} holds {choices}, not `{part}`", fix=fix), span
        index: str | int = int(part) if part.isdecimal() and not isinstance(here, dict) else part
        path = (*path, index)
        if position == len(parts) - 1:
            cast(Any, here)[index] = value
            spans.override(path, span)
            spans.values.update(((*path, *below), span) for below in inner)
        else:
            if isinstance(here, dict) and part not in here:
                cast(dict[str, Any], here)[part] = {}
                spans.override(path, span)
            here = cast(Any, here)[index]
    return None, span


def _step(kind: Any, here: Any, part: str) -> tuple[Sequence[str] | None, Any]:
    """Go one step down: (None, type of what is there), or (the names that exist, None) where there is no such step."""
    members = [member for member in union_members(kind) if get_origin(member) is not Literal and member is not type(None)]
    if isinstance(here, list):
        rows = cast(list[Any], here)
        inside = part.isdecimal() and int(part) < len(rows)
        item = next((get_args(member)[0] for member in members if get_origin(member) is tuple), Any)
        return (None, item) if inside else ([str(i) for i in range(len(rows))], None)
    if not isinstance(here, dict):
        return [], None
    values = cast(dict[str, Any], here)
    records = [member for member in members if dataclasses.is_dataclass(member)]
    if records:
        chosen = [
            record
            for record in records
            if get_args(fields_by_name(record).get("method", (None, None))[1]) == (values.get("method"),)
        ]
        fields = fields_by_name((chosen or records)[0])
        return (None, fields[part][1]) if part in fields else (list(fields), None)
    inner = next((get_args(member)[1] for member in members if get_args(member)), Any)
    if inner is Any or part in values:
        return None, inner
    return list(values), None
