"""What was probably meant: names and paths that resemble what stands there, and numbers written with units, shares or quotes."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from .fields import FieldInfo, yaml_name

Path = tuple[str | int, ...]

CLOSE, VERY_CLOSE = 0.6, 0.8  # similarity of names, as difflib measures it
MOST_PLACES = 3
_ANY_KEY, _ANY_ITEM = "<name>", -1  # in a path of the language: whatever name, whichever item
_NUMBER = re.compile(r"([-+]?[0-9][0-9_,' ]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z%]*)")
_THOUSANDS = {"k": (1024, 1000), "m": (1024**2, 10**6), "b": (10**9,), "g": (1024**3, 10**9), "ki": (1024,), "mi": (1024**2,)}
_SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


def suggest(word: str, candidates: Sequence[str], cutoff: float = CLOSE) -> str | None:
    """The candidate that a misspelt word most likely means."""
    folded = {_fold(candidate): candidate for candidate in candidates}
    close = difflib.get_close_matches(_fold(word), list(folded), n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def show_path(path: Path) -> str:
    """A path as users write it: `teachers.searcher.phases[0].method`."""
    parts = (f"[{'n' if part == _ANY_ITEM else part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".")


def field_fix(word: str, here: Sequence[str], path: Path, root: Any, root_path: Path) -> str | None:
    """What to do about a field that does not exist: its likely spelling here, or the places where it does exist."""
    guess = suggest(word, here)
    if guess and (_fold(guess) == _fold(word) or suggest(word, here, VERY_CLOSE)):
        return f"did you mean `{guess}`?"
    places = _places(word, path, root, root_path)
    if places:
        return f"`{places[0][0]}` exists under {_listed([place for _, place in places])}"
    return f"did you mean `{guess}`?" if guess else None


def number_fix(kind: type[Any], data: Any, info: FieldInfo | None) -> str | None:
    """How to write a number that was written as something else."""
    if kind is int and isinstance(data, float):
        if data.is_integer():
            return f"write `{_plain(data)}`"
        return f"the nearest whole numbers are {int(data // 1)} and {int(data // 1) + 1}"
    if not isinstance(data, str) or len(data) > 60:
        return None
    if data.lower().lstrip("+-.") in ("nan", "inf", "infinity") or re.fullmatch(r"[-+]?[0-9.]+[eE][0-9]+", data):
        return "write a finite number"
    if re.fullmatch(r"[0-9]+([:-][0-9]+)+", data):
        return "write it out as one number"
    found = _NUMBER.fullmatch(data)
    if found is None:
        return None
    digits, unit = re.sub(r"[_,' ]", "", found[1]), found[2].lower()
    if not unit:
        return f"write `{digits}`, without quotes or separators"
    value = float(digits)
    if unit == "%":
        return f"write `{value / 100:g}`: it is a share"
    factors: tuple[float, ...] = _THOUSANDS.get(unit, ())
    if info is not None and info.unit == "seconds":
        factors = (_SECONDS[unit],) if unit in _SECONDS else ()
    if factors:
        return "write " + " or ".join(f"`{_plain(value * factor)}`" for factor in factors)
    wanted = f"; it counts {info.unit}" if info is not None and info.unit else ""
    return f"write the number alone, such as `{_plain(value)}`{wanted}"


def share_fix(value: float, info: FieldInfo) -> str | None:
    """How to write a share that was written in percent."""
    highest = info.maximum if info.maximum is not None else info.exclusive_maximum
    if highest == 1 and 1 < value <= 100:
        return f"a share between 0 and 1: {value:g} % is `{value / 100:g}`"
    return None


def name_fix(text: str, pattern: str) -> str | None:
    """The well-formed name nearest to a malformed one."""
    name = well_formed(text)
    return f"did you mean `{name}`?" if name != text and re.fullmatch(pattern, name) else None


def well_formed(name: str) -> str:
    """A name as names are written: lower case, without spaces."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.strip().lower()).strip("-_")[:63]


def _fold(word: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower().replace("-", "_")


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"


def _listed(places: Sequence[str]) -> str:
    shown = [f"`{place}`" if place else "the spec itself" for place in dict.fromkeys(places)]
    return ", ".join(shown[:MOST_PLACES]) + (" and elsewhere" if len(shown) > MOST_PLACES else "")


def _places(word: str, path: Path, root: Any, root_path: Path) -> list[tuple[str, str]]:
    """Where else a field of this name exists, nearest first: its name and the path of the block that holds it."""
    index = _paths_of(root)
    name = next((known for known in index if _fold(known) == _fold(word)), None) or suggest(word, list(index), VERY_CLOSE)
    ranked: list[tuple[int, int, Path]] = []
    for template in index.get(name or "", ()):
        place = _at(path, (*root_path, *template))
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(place, path, strict=False)))
        ranked.append((-shared, len(place), place))
    if not ranked:
        return []
    best = min(ranked, key=lambda one: one[0])[0]
    ranked.sort(key=lambda one: (one[0], one[1]))  # stable: the order of the language otherwise
    return [(str(name), show_path(place)) for shared, _, place in ranked if shared == best]


def _at(path: Path, template: Path) -> Path:
    """A path of the language with names and items filled in from an actual path, as far as they run alike."""
    filled: list[str | int] = []
    alike = True
    for i, part in enumerate(template):
        alike = alike and i < len(path) and (part in (_ANY_KEY, _ANY_ITEM, path[i]))
        filled.append(path[i] if alike else part)
    return tuple(filled)


@cache
def _paths_of(root: Any) -> Mapping[str, tuple[Path, ...]]:
    """Every field of a language by name: the paths of the blocks that hold it, in the order of the language."""
    index: dict[str, dict[Path, None]] = {}
    for path, name in _walk(root, ()):
        index.setdefault(name, {})[path] = None
    return {name: tuple(paths) for name, paths in index.items()}


def _walk(kind: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            name = yaml_name(field) if "spec" in field.metadata else field.name
            yield path, name
            yield from _walk(hints[field.name], (*path, name))
        return
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal or not arguments:
        return
    if origin is tuple:
        yield from _walk(arguments[0], (*path, _ANY_ITEM))
    elif isinstance(origin, type) and issubclass(cast(type[Any], origin), Mapping):
        yield from _walk(arguments[1], (*path, _ANY_KEY))
    else:
        for member in arguments:
            yield from _walk(member, path)
