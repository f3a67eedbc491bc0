"""Writes `docs/language.md` and `docs/errors.md` from the declarations: `python -m polymath.specs.reference docs/`."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from .build import fields_by_name, is_required, to_json, union_members
from .codes import CODES
from .fields import FieldInfo
from .model import Spec
from .worlds import BUILTIN_WORLDS

LANGUAGE = """# The language

A spec is one YAML file. `polymath init my.yaml` writes one to start from; `polymath validate my.yaml` names every mistake in it
at once, as `file:line:column`, with what was probably meant. This page is generated from `specs/model.py`; `polymath schema`
prints the same as JSON Schema for editors.

- **Strict YAML.** `1e-5` is a number, `no` is text, a key may be set once. Anchors, aliases, tags, a second document and files
  above 256 KiB are refused. Nothing you write is ever ignored.
- **Paths** are URLs that fsspec knows (`file://`, `https://`, `s3://`) or relative to the folder of the file that wrote them;
  `--set` writes relative to the spec's.
- **`extends: other.yaml`** changes another spec, which lies in the folder of the spec that is compiled or below it: no URL, and no
  `..` or link out of there; no circles. Mappings merge deeply; a list or a scalar replaces what the other says, `null` takes it
  away. A message names the file that wrote a value, and a relative path means the folder of that file. `polymath compile --show
  PATH` tells where a value came from. Editors check such a spec with `extending.v1.json`.
- **`--set path=value`** replaces one value, as in `--set student.sft.epochs=2` or `--set 'teachers.a.phases[0].samples=4'`. A
  value that opens with `[` or `{` is read as YAML.
- **What changing a field changes**: **n**umerics (the weights: the job and all after it run again), **p**lacement (where and how
  fast: finished jobs are kept), **l**abel (names only).
"""

ERRORS = """# Mistakes and exit codes

Every mistake in a spec has a code, and codes never change their meaning. This page is generated from `specs/codes.py`; every
code has a page with an example that fails and how to mend it, which `polymath explain E0201` prints too.

| Exit code | Meaning | What to do |
|---|---|---|
| 0 | done | |
| 1 | a bug of ours | report it with what `POLYMATH_DEBUG=1` shows |
| 2 | differences were found | |
| 3 | the spec or its data is wrong | the message names file, line and column, or file and row |
| 4 | the plan or lock is stale or was edited | lock and compile again; the message has the command |
| 5 | the machine is unfit (port, devices, disk, sandbox, a run in use) | the message says what is missing |
| 6 | the run failed | the message names the job and its log |
| 7 | stopped, and can go on | `polymath launch` again |
| 64 | the command line is wrong | `polymath VERB --help` |
"""


def language_page() -> str:
    """The page of the language."""
    records: dict[str, type[Any]] = {}
    _collect(Spec, records)
    parts = [LANGUAGE]
    parts += [_table(cls.__name__, cls) for cls in records.values()]
    parts.append("# Settings of the worlds\n")
    parts += [_table(f"`world: {name}`", cls) for name, cls in BUILTIN_WORLDS.items()]
    return "\n".join(parts)


def errors_page() -> str:
    """The page of the codes."""
    rows = [f"| [{code}](errors/{code}.md) | {entry.title} | {entry.doc} |" for code, entry in CODES.items()]
    return "\n".join([ERRORS, "| Code | Mistake | Why |", "|---|---|---|", *rows, ""])


def _collect(cls: type[Any], records: dict[str, type[Any]]) -> None:
    """Every block that a block may hold, outer ones first."""
    if cls.__name__ in records:
        return
    records[cls.__name__] = cls
    for _, kind in fields_by_name(cls).values():
        for inner in _blocks(kind):
            _collect(inner, records)


def _blocks(kind: Any) -> Iterator[type[Any]]:
    if dataclasses.is_dataclass(kind):
        yield cast(type[Any], kind)
    for inner in get_args(kind) if get_origin(kind) is not Literal else ():
        yield from _blocks(inner)


def _table(title: str, cls: type[Any]) -> str:
    lines = [
        f"## {title}",
        "",
        " ".join((cls.__doc__ or "").split()),
        "",
        "| Field | Type | Default | | |",
        "|---|---|---|---|---|",
    ]
    for name, (field, kind) in fields_by_name(cls).items():
        info: FieldInfo = field.metadata["spec"]
        cells = [f"`{name}`", describe_type(kind, link=True), _default_cell(field), info.identity.value[0], _doc_cell(info)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def describe_type(kind: Any, *, link: bool = False) -> str:
    """A type in words; `link` writes Markdown that leads to the tables of blocks."""
    tick = "`" if link else ""
    members = [member for member in union_members(kind) if member is not type(None)]
    if len(members) > 1:
        return " or ".join(describe_type(member, link=link) for member in members)
    (kind,) = members
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"{tick}{choice}{tick}" for choice in arguments)
    if origin is tuple:
        item = describe_type(arguments[0], link=link)
        return f"list of {item}" if arguments[-1] is Ellipsis else f"{len(arguments)} x {item}"
    if origin is dict:
        return f"by name: {describe_type(arguments[1], link=link)}"
    if dataclasses.is_dataclass(kind):
        name = cast(type[Any], kind).__name__
        return f"[{name}](#{name.lower()})" if link else name
    return {int: "whole number", float: "number", str: "text", bool: "true, false", Any: "anything"}[kind]


def describe_default(field: dataclasses.Field[Any]) -> str:
    """The default of an optional field as JSON; nothing where that is a block or no value."""
    value = field.default if field.default is not dataclasses.MISSING else cast(Any, field.default_factory)()
    return "" if value is None or dataclasses.is_dataclass(value) else json.dumps(to_json(value))


def describe_limits(info: FieldInfo) -> str:
    """The range of a number."""
    pairs = (
        ("at least", info.minimum),
        ("above", info.exclusive_minimum),
        ("at most", info.maximum),
        ("below", info.exclusive_maximum),
    )
    return ", ".join(f"{word} {limit:g}" for word, limit in pairs if limit is not None)


def _default_cell(field: dataclasses.Field[Any]) -> str:
    if is_required(field):
        return "**required**"
    value = describe_default(field)
    return f"`{value}`" if value else ""


def _doc_cell(info: FieldInfo) -> str:
    limits = describe_limits(info)
    return (info.doc + (f" ({limits})" if limits else "")).replace("|", "\\|")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.joinpath("language.md").write_text(language_page(), encoding="utf-8")
    folder.joinpath("errors.md").write_text(errors_page(), encoding="utf-8")
