"""`extends: other.yaml`: a spec that changes another one.

Mappings merge deeply, a list or a scalar replaces what the other spec says, and null takes it away. Every value keeps the place
where it was written, and a relative path means the folder of the file that wrote it.

The other spec is a file in the folder of the spec that was asked for, or below it: no URL, no `..` and no link leads out of there.
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, cast

from .build import Path
from .codes import summary
from .diagnostics import Diagnostic, Span, UserError
from .locations import is_url, near, rebase
from .worlds import installed_locations
from .yaml import Document, Spans, read_file

EXTENDS = "extends"
READABLE = ("E0102", "E0104", "E0105")  # mistakes of YAML after which the rest of the file still means what it says


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A spec with all that it extends, as one."""

    data: Any
    spans: Spans
    texts: Mapping[str, str]  # by file name as shown
    diagnostics: tuple[Diagnostic, ...]
    readable: bool  # whether the data is worth checking in spite of the diagnostics


def read_source(path: FilePath, shown: str, written: Document | None = None) -> Source:
    """Read a spec and what it extends; `shown` is its name in messages, `written` what it says where that is not the file itself.

    Raises:
        UserError: the spec itself cannot be read.
    """
    root = path.absolute().parent
    chain = [_Link(document=written or read_file(path, shown), shown=shown, relative=path.name)]
    reached = [path.resolve()]
    problem: Diagnostic | None = None
    while problem is None and (base := _base_of(chain[-1].document)) is not None:
        link, real, problem = _follow(chain[-1], base, root)
        if link is None or real is None:
            break
        if real in reached:
            names = [*(one.shown for one in chain[reached.index(real) :]), link.shown]
            problem = _mistake("E0110", chain[-1], " -> ".join(names), "let one of them stand alone")
            break
        chain.append(link)
        reached.append(real)
    diagnostics = [found for link in chain for found in link.document.diagnostics]
    for link in chain[1:]:
        if not link.document.diagnostics and not _is_mapping(link.document):
            diagnostics.append(_mistake("E0202", link, "expected a mapping", at=()))
            problem = diagnostics[-1]
    merged = chain[-1].document
    for link in reversed(chain[:-1]):
        merged = _merge(merged, link.document)
    return Source(
        data=merged.data,
        spans=merged.spans,
        texts={link.shown: link.document.text for link in chain},
        diagnostics=(*diagnostics, *([problem] if problem and problem not in diagnostics else [])),
        readable=problem is None and all(found.code in READABLE for found in diagnostics),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Link:
    """One file of the chain."""

    document: Document
    shown: str
    relative: str  # to the root; never leads out of it


def _is_mapping(document: Document) -> bool:
    return isinstance(document.data, dict)


def _base_of(document: Document) -> str | None:
    data = cast(dict[str, Any], document.data) if _is_mapping(document) else {}
    base = data.get(EXTENDS)
    return base if isinstance(base, str) else None


def _follow(link: _Link, base: str, root: FilePath) -> tuple[_Link | None, FilePath | None, Diagnostic | None]:
    """The file that a spec extends, with its real path; or why there is none."""
    relative = posixpath.normpath(posixpath.join(posixpath.dirname(link.relative), base))
    outside = "only a file in the folder of the first spec, or below it, can be extended"
    if is_url(base) or posixpath.isabs(relative) or relative.split("/")[0] == "..":
        return None, None, _mistake("E0111", link, f"{base!r} is not in the folder of this spec", outside)
    shown = posixpath.normpath(posixpath.join(posixpath.dirname(link.shown), base))
    try:
        real = (root / relative).resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            return None, None, _mistake("E0111", link, f"{base!r} is a link out of the folder of this spec", outside)
        document = read_file(real, shown)
    except (OSError, ValueError, RuntimeError, UserError):  # missing, unreadable, a NUL in the name, a loop of links
        guess = near(root / relative, base)
        fix = guess if guess.startswith("did you mean") else "the path is relative to this file"
        return None, None, _mistake("E0112", link, f"there is no file {base!r} here", fix)
    if _is_mapping(document):
        data = cast(dict[str, Any], document.data)
        rebase(data, posixpath.dirname(relative), installed_locations(data))
    return _Link(document=document, shown=shown, relative=relative), real, None


def _mistake(code: str, link: _Link, detail: str, fix: str | None = None, at: Path = (EXTENDS,)) -> Diagnostic:
    return Diagnostic(code=code, summary=summary(code), span=link.document.spans.at(at), detail=detail, fix=fix)


def _merge(base: Document, over: Document) -> Document:
    """Lay a document over the one that it extends."""
    if not (_is_mapping(base) and _is_mapping(over)):
        return over
    replaced: set[Path] = set()
    removed: set[Path] = set()
    data = _merged(cast(dict[str, Any], base.data), cast(dict[str, Any], over.data), (), replaced, removed)

    def laid(below: dict[Path, Span], above: dict[Path, Span]) -> dict[Path, Span]:
        kept = {
            path: span for path, span in below.items() if not any(path[:length] in replaced for length in range(1, len(path) + 1))
        }
        return {**kept, **{path: span for path, span in above.items() if path not in removed}}

    spans = Spans(over.spans.file, laid(base.spans.values, over.spans.values), laid(base.spans.keys, over.spans.keys))
    return replace(over, data=data, spans=spans)


def _merged(base: dict[str, Any], over: dict[str, Any], path: Path, replaced: set[Path], removed: set[Path]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            result[key] = _merged(cast(dict[str, Any], below), cast(dict[str, Any], value), (*path, key), replaced, removed)
            continue
        replaced.add((*path, key))
        if value is None and key in base:
            del result[key]
            removed.add((*path, key))
        else:
            result[key] = value
    return result
