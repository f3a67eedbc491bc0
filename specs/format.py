"""`polymath fmt`: the fields of a spec in the order of `model.py`, with every comment where it belongs.

It moves lines and the items of one-line mappings, and writes nothing anew, so quotes, spacing and numbers stay as they are. What a
user named (domains, teachers), lists, mappings in braces over several lines and unknown fields keep their order. A comment or blank
line belongs to what follows it, one that is indented deeper than what follows to what precedes it; the head of the file stays.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, cast, get_args, get_origin

import yaml

from .build import fields_by_name, union_members
from .model import Spec
from .yaml import parse_events, read_text

Place = tuple[int, int]  # line and column, from 0
_OTHER_BREAKS = re.compile("[\x85\u2028\u2029]")  # line breaks to YAML, but not to us
_MOVABLE = re.compile(r"( *)(#.*)?")


@dataclass(slots=True)
class _Node:
    """A value as the parser met it."""

    form: Literal["scalar", "mapping", "list"]
    flow: bool
    start: Place
    end: Place
    text: str = ""  # of a scalar
    literal: bool = False  # a scalar in the form `|` or `>`, whose spaces count
    items: list[tuple["_Node | None", "_Node"]] = field(default_factory=list[tuple["_Node | None", "_Node"]])  # key and value

    @property
    def keys(self) -> list[str]:
        return [key.text for key, _ in self.items if key is not None]


def format_spec(text: str) -> str:
    """The same spec in canonical order. Formatting twice changes nothing more.

    Raises:
        ValueError: the text is not a spec that the strict reader takes.
    """
    before = read_text(text, "")
    if before.diagnostics:
        raise ValueError("the file has mistakes of YAML")
    if _OTHER_BREAKS.search(text) or before.data is None:
        return text
    text = re.sub(r"\r\n?", "\n", text)
    root = _tree(text)
    lines = text.rstrip("\n").split("\n")
    _order_flows(root, Spec, lines)
    has_literal = any(node.literal for node in _walk(root))
    if not has_literal:
        lines = [line.rstrip() for line in lines]
    lines = _ordered(root, Spec, lines, 0, len(lines), outermost=True)
    result = "\n".join(lines).rstrip("\n") + "\n"
    after = read_text(result, "")
    if has_literal and after.data != before.data:
        return text  # it ends within a literal, and the line breaks at its end are part of that
    assert after.data == before.data and not after.diagnostics, "formatting would change what the spec says"
    assert sorted(_comments(result)) == sorted(_comments(text)), "formatting would lose a comment"
    return result


def canonical_names(block: type[Any]) -> list[str]:
    """The fields of a block: its own first (`from`, `method`), then those that it shares with other blocks."""
    names = list(fields_by_name(block))
    shared = {name for base in block.__mro__[1:] if is_dataclass(base) for name in fields_by_name(base)}
    own = [name for name in names if name not in shared]
    parents = [base for base in block.__mro__[1:] if is_dataclass(base)]
    return own + canonical_names(parents[0]) if parents else own


def _tree(text: str) -> _Node:
    """The value of the only document, without recursion."""
    stack: list[_Node] = []
    keys: list[_Node | None] = []
    root: _Node | None = None
    for event in parse_events(text):
        if isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            node = stack.pop()
            keys.pop()
            mark: Any = cast(Any, event).end_mark
            node.end = (mark.line, mark.column)
        elif isinstance(event, (yaml.ScalarEvent, yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            node = _node(event)
            if not stack:
                root = node
            elif stack[-1].form == "list":
                stack[-1].items.append((None, node))
            elif keys[-1] is None:
                keys[-1] = node
            else:
                stack[-1].items.append((keys[-1], node))
                keys[-1] = None
            if node.form != "scalar":
                stack.append(node)
                keys.append(None)
    assert root is not None
    return root


def _node(event: Any) -> _Node:
    start, end = (event.start_mark.line, event.start_mark.column), (event.end_mark.line, event.end_mark.column)
    if isinstance(event, yaml.ScalarEvent):
        style: Any = cast(Any, event).style
        return _Node(form="scalar", flow=True, start=start, end=end, text=str(event.value), literal=style in ("|", ">"))
    form = "mapping" if isinstance(event, yaml.MappingStartEvent) else "list"
    return _Node(form=form, flow=bool(event.flow_style), start=start, end=end)


def _walk(node: _Node) -> Iterator[_Node]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [value for _, value in node.items]


def _order(node: _Node, kind: Any) -> list[int]:
    """The positions of a mapping's items in canonical order."""
    block = _block(kind, node)
    names = canonical_names(block) if block is not None else []
    rank = {name: number for number, name in enumerate(names)}
    return sorted(range(len(node.items)), key=lambda item: (rank.get(node.keys[item], len(names)), item))


def _block(kind: Any, node: _Node) -> type[Any] | None:
    """The block that a mapping is read as; where `method` chooses, the chosen one."""
    records = [member for member in union_members(kind) if hasattr(member, "__dataclass_fields__")]
    written = {key.text: value.text for key, value in node.items if key is not None}
    for record in records:
        method = fields_by_name(record).get("method")
        if method is not None and written.get("method") in get_args(method[1]):
            return record
    return records[0] if records else None


def _kind_of(node: _Node, kind: Any, key: str | None) -> Any:
    """The type of an item."""
    block = _block(kind, node)
    if block is not None and key is not None:
        fields = fields_by_name(block)
        return fields[key][1] if key in fields else Any
    wanted = dict if node.form == "mapping" else tuple
    member = next((one for one in union_members(kind) if get_origin(one) is wanted), None)
    return Any if member is None else get_args(member)[1 if wanted is dict else 0]


def _order_flows(node: _Node, kind: Any, lines: list[str]) -> None:
    """Order every mapping in braces on one line, in place: it stays as long as it was."""
    if node.flow and node.form != "scalar" and node.start[0] == node.end[0]:
        line, column = node.start
        lines[line] = lines[line][:column] + _flow_text(node, kind, lines[line]) + lines[line][node.end[1] :]
    elif not node.flow:
        for key, value in node.items:
            _order_flows(value, _kind_of(node, kind, key.text if key else None), lines)


def _flow_text(node: _Node, kind: Any, line: str) -> str:
    if node.form == "scalar" or not node.items:
        return line[node.start[1] : node.end[1]]
    parts: list[str] = []
    gaps: list[str] = []
    reached = node.start[1]
    for key, value in node.items:
        begin = (key or value).start[1]
        gaps.append(line[reached:begin])
        inner = _flow_text(value, _kind_of(node, kind, key.text if key else None), line)
        parts.append(line[begin : value.start[1]] + inner)
        reached = value.end[1]
    order = _order(node, kind) if node.form == "mapping" else range(len(parts))
    moved = [parts[position] for position in order]
    return "".join(gap + part for gap, part in zip(gaps, moved, strict=True)) + line[reached : node.end[1]]


def _ordered(node: _Node, kind: Any, lines: list[str], begin: int, end: int, *, outermost: bool = False) -> list[str]:
    """The lines from `begin` to `end`, which hold a value in block form and what stands between its keys, in order."""
    if node.flow or not node.items:
        return lines[begin:end]
    starts = [(key or value).start for key, value in node.items]
    if node.form == "list":  # an item stands behind its dash, perhaps on a later line
        starts = [_dash(lines, place, begin) for place in starts]
    if len({line for line, _ in starts}) < len(starts):
        return lines[begin:end]
    firsts = [_first_line(lines, line, column, begin) for line, column in starts]
    head = lines[begin : starts[0][0]] if outermost else []
    firsts[0] = starts[0][0] if outermost else begin
    parts: list[list[str]] = []
    for number, (key, value) in enumerate(node.items):
        last = firsts[number + 1] if number + 1 < len(firsts) else end
        own = starts[number][0]  # lines before it are comments of this item
        inner_kind = _kind_of(node, kind, key.text if key else None)
        parts.append([*lines[firsts[number] : own], *_item(value, inner_kind, lines, own, last, is_key=key is not None)])
    order = _order(node, kind) if node.form == "mapping" else range(len(parts))
    if list(order) == list(range(len(parts))):
        return [*head, *(line for part in parts for line in part)]
    moved = [parts[position] for position in order]
    while (not head or not head[-1].strip()) and moved[0] and not moved[0][0].strip():
        moved[0] = moved[0][1:]
    return [*head, *(line for part in moved for line in part)]


def _item(value: _Node, kind: Any, lines: list[str], own: int, last: int, *, is_key: bool) -> list[str]:
    """The lines of one item: a key or dash on line `own`, and its value."""
    if value.flow or not value.items:
        return lines[own:last]
    if value.start[0] > own:  # the value begins on a line of its own
        return [lines[own], *_ordered(value, kind, lines, own + 1, last)]
    if is_key or value.form == "list":
        return lines[own:last]
    column = value.start[1]  # the first key stands behind the dash, which stays in front
    dash, bare = lines[own][:column], list(lines)
    bare[own] = " " * column + lines[own][column:]
    moved = _ordered(value, kind, bare, own, last)
    at = next(number for number, line in enumerate(moved) if line.strip() and not line.lstrip().startswith("#"))
    return [*moved[:at], dash + moved[at][column:], *moved[at + 1 :]]


def _dash(lines: list[str], place: Place, begin: int) -> Place:
    line, column = place
    if "-" in lines[line][:column]:
        return line, lines[line].index("-")
    while line > begin and not lines[line].lstrip().startswith("-"):
        line -= 1
    return line, len(lines[line]) - len(lines[line].lstrip())


def _first_line(lines: list[str], line: int, column: int, begin: int) -> int:
    """Where the comments and blank lines above a key begin that belong to it."""
    while line > begin:
        above = _MOVABLE.fullmatch(lines[line - 1])
        if above is None or (above[2] and len(above[1]) > column):
            break
        line -= 1
    return line


def _comments(text: str) -> list[str]:
    """Every line's text after a `#` that could open a comment."""
    return [found[1].strip() for line in text.split("\n") if (found := re.search(r"(?:^|\s)#(.*)", line)) and "{" not in line]
