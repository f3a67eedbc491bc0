"""What goes together and what does not: evaluates the table `capabilities.json`, whose every "no" has its reason and its source.

A rule applies when all its conditions hold of the facts. A condition compares one fact with a value, with a list of values, or by
`above`, `below`, `not` (a value, or any of a list) or `does not divide`, with a value or with another fact that is named. Versions
and compute capabilities are written as text and compared by their numbers. A condition on a fact that is not known does not hold:
what is not known is not refused here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A combination that does not work."""

    name: str
    when: Mapping[str, Any]
    blames: str  # the degree of a mesh, or the path of a field
    reason: str  # facts in braces
    source: str
    instead: str | None = None  # what to write; degrees are searched for

    def why(self, facts: Facts) -> str:
        """The reason, with its facts."""
        return self.reason.format_map(facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is chosen where its conditions hold."""

    when: Mapping[str, Any]
    value: str
    reason: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The whole table."""

    limits: tuple[Limit, ...]
    choices: Mapping[str, tuple[Choice, ...]]


@cache
def table() -> Table:
    """The table that is installed with the compiler."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("capabilities.json").read_text(encoding="utf-8"))
    return Table(
        limits=tuple(Limit(**row) for row in data["limits"]),
        choices={name: tuple(Choice(**row) for row in rows) for name, rows in data["choices"].items()},
    )


def broken_limits(facts: Facts) -> Iterator[Limit]:
    """Every limit that the facts break."""
    return (limit for limit in table().limits if applies(limit.when, facts))


def choose(name: str, facts: Facts) -> Choice:
    """The first choice whose conditions hold; the last of a name has none."""
    return next(choice for choice in table().choices[name] if applies(choice.when, facts))


def applies(when: Mapping[str, Any], facts: Facts) -> bool:
    """Whether all conditions hold."""
    return all(facts.get(name) is not None and _holds(facts[name], wanted, facts) for name, wanted in when.items())


def _holds(value: Any, wanted: Any, facts: Facts) -> bool:
    if isinstance(wanted, list):
        return value in cast(list[Any], wanted)
    if not isinstance(wanted, dict):
        return value == wanted
    ((operator, bound),) = cast(dict[str, Any], wanted).items()
    if isinstance(bound, str) and not bound[0].isdigit():  # the name of a fact
        bound = facts.get(bound)
    if bound is None:
        return False
    if operator == "above":
        return _ordered(value) > _ordered(bound)
    if operator == "below":
        return _ordered(value) < _ordered(bound)
    if operator == "not":
        return value not in cast(list[Any], bound) if isinstance(bound, list) else value != bound
    assert operator == "does not divide", operator
    return isinstance(bound, int) and bound % value != 0


def _ordered(value: Any) -> tuple[float, ...]:
    """A number, or the numbers of a version, in a form that compares."""
    if isinstance(value, str):
        return tuple(int(part) for part in value.split("."))
    return (value,)
