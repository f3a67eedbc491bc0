"""Every field of the language by its path: what `explain`, `diff`, `fmt` and the shells' completion look things up in."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast, get_args, get_origin

from .build import fields_by_name, union_members
from .fields import FieldInfo, Identity
from .model import Spec
from .worlds import BUILTIN_WORLDS

ANY_NAME, ANY_ITEM = "<name>", "[]"  # steps of a path: a key of the user's, and an item of a list
Steps = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One field. A union of blocks gives one node per block."""

    steps: Steps
    field: dataclasses.Field[Any]
    kind: Any
    owner: type[Any]  # the block that it is a field of

    @property
    def info(self) -> FieldInfo:
        return self.field.metadata["spec"]

    @property
    def path(self) -> str:
        """As users write it, with `<name>` for their own names: `teachers.<name>.phases[].clip`."""
        return show_steps(self.steps)


def show_steps(steps: Steps) -> str:
    """The path of some steps."""
    return "".join(step if step == ANY_ITEM else f".{step}" for step in steps).lstrip(".")


@cache
def all_nodes() -> tuple[Node, ...]:
    """Every field, outer ones first."""
    return tuple(_below(Spec, ()))


def find_nodes(path: str) -> list[Node]:
    """The fields at a path such as `teachers.searcher.phases[0].clip`; the item of a list may be left out."""
    parts = parts_of(path)
    return [node for node in all_nodes() if _matches(node.steps, parts)]


def parts_of(path: str) -> Steps:
    """The parts of a path that a user wrote."""
    return tuple(part for part in re.sub(r"\[(\d*)\]", r".[\1].", path).replace("..", ".").strip(".").split(".") if part)


def identity_of(path: str) -> Identity:
    """What changing the value at a path changes: a block that is only a label makes all in it a label."""
    parts = parts_of(path)
    along = {node.info.identity for node in all_nodes() if any(_matches(node.steps, parts[:n]) for n in range(1, len(parts) + 1))}
    return Identity.LABEL if Identity.LABEL in along else Identity.PLACEMENT if Identity.PLACEMENT in along else Identity.NUMERICS


def blocks_of(kind: Any) -> list[type[Any]]:
    """The blocks that a value of a type may be, not looking into lists and mappings."""
    return [cast(type[Any], member) for member in union_members(kind) if dataclasses.is_dataclass(member)]


def _below(owner: type[Any], steps: Steps) -> Iterator[Node]:
    for name, (field, kind) in fields_by_name(owner).items():
        here = (*steps, name)
        yield Node(steps=here, field=field, kind=kind, owner=owner)
        yield from _inside(kind, here)
        if here == ("domains", ANY_NAME, "settings"):
            for world in BUILTIN_WORLDS.values():
                yield from _below(world, here)


def _inside(kind: Any, steps: Steps) -> Iterator[Node]:
    for member in union_members(kind):
        origin, arguments = get_origin(member), get_args(member)
        if dataclasses.is_dataclass(member):
            yield from _below(cast(type[Any], member), steps)
        elif origin is dict:
            yield from _inside(arguments[1], (*steps, ANY_NAME))
        elif origin is tuple:
            yield from _inside(arguments[0], (*steps, ANY_ITEM))


def _matches(steps: Steps, parts: Sequence[str]) -> bool:
    if not steps:
        return not parts
    if steps[0] == ANY_ITEM:
        numbered = bool(parts) and (parts[0].startswith("[") or parts[0].isdigit())
        return _matches(steps[1:], parts[1:] if numbered else parts)
    return bool(parts) and steps[0] in (ANY_NAME, parts[0]) and _matches(steps[1:], parts[1:])
