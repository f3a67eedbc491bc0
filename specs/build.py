"""Between the spec's dataclasses and plain JSON data: one type-directed walk that builds, checks and collects every mistake.

`build` recovers where it safely can (a misspelt key is read as the field it resembles), so that mistakes further on are still
found; its value must not be used when there are problems, except to look for more of them.
"""

import dataclasses
import math
import operator
import re
import types
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeGuard, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .diagnostics import MOST_MISTAKES
from .fields import FieldInfo, Identity, yaml_name
from .hints import Path, field_fix, name_fix, number_fix, share_fix, show_path, suggest

__all__ = ["MISSING", "Path", "Problem", "build", "from_json", "is_finite_number", "kept", "show_path", "suggest", "to_json"]

T = TypeVar("T")


class _Missing:
    """Stands for a value that could not be built."""


MISSING = _Missing()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One mistake in plain data. `at_key` says that the key is at fault rather than the value."""

    code: str
    path: Path
    detail: str
    fix: str | None = None
    at_key: bool = False


def to_json(value: Any) -> Any:
    """The plain data of a spec object, complete with defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            yaml_name(field) if "spec" in field.metadata else field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in cast(Mapping[str, Any], value).items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in cast(Sequence[Any], value)]
    return value


def kept(kind: Any, data: Any, classes: Collection[Identity]) -> Any:
    """Of the plain data of a type, as `to_json` writes it, what belongs to some identity classes."""
    if not isinstance(data, (dict, list)):
        return data
    member = next((member for member in union_members(kind) if _holds(member, cast(Any, data))), Any)
    if isinstance(data, list):
        inner = get_args(member)[0] if get_args(member) else Any
        return [kept(inner, item, classes) for item in cast(list[Any], data)]
    values = cast(dict[str, Any], data)
    if dataclasses.is_dataclass(member):
        fields = fields_by_name(cast(type[Any], member))
        return {
            name: kept(fields[name][1], value, classes)
            for name, value in values.items()
            if "spec" not in fields[name][0].metadata or fields[name][0].metadata["spec"].identity_of(value) in classes
        }
    inner = get_args(member)[1] if get_args(member) else Any
    return {name: kept(inner, value, classes) for name, value in values.items()}


def _holds(member: Any, data: dict[str, Any] | list[Any]) -> bool:
    """Whether a member of a union is the type of a mapping or list that `to_json` wrote."""
    if isinstance(data, list):
        return get_origin(member) is tuple
    if dataclasses.is_dataclass(member):
        method = fields_by_name(cast(type[Any], member)).get("method")
        return method is None or data.get("method") in get_args(method[1])
    origin = get_origin(member)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def from_json(cls: type[T], data: Any) -> T:
    """Build an object of a dataclass from plain data.

    Raises:
        ValueError: the data does not fit; the message names every path.
    """
    value, problems = build(cls, data)
    if problems:
        raise ValueError("; ".join(f"{show_path(problem.path) or 'the value'}: {problem.detail}" for problem in problems))
    return cast(T, value)


def build(kind: Any, data: Any, path: Path = (), names: Mapping[str, Sequence[str]] | None = None) -> tuple[Any, list[Problem]]:
    """Build a value of a type and list every mistake. `names` holds the keys that fields with a `reference` may name."""
    walk = _Walk(names or {}, kind, path)
    try:
        value = walk.value(kind, data, path, None)
    except _TooManyError:
        value = MISSING
    return value, walk.problems


@cache
def fields_by_name(cls: type[Any]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass by the name that a user writes, each with its resolved type."""
    hints = get_type_hints(cls)
    return {
        (yaml_name(field) if "spec" in field.metadata else field.name): (field, hints[field.name])
        for field in dataclasses.fields(cls)
    }


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a spec must hold the field."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def union_members(kind: Any) -> tuple[Any, ...]:
    """The members of a union type; of another type, itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


class _TooManyError(Exception):
    """There is no use in going on."""


class _Walk:
    """One walk; collects problems on the way."""

    def __init__(self, names: Mapping[str, Sequence[str]], root: Any, root_path: Path) -> None:
        self.names = names
        self.root, self.root_path = root, root_path
        self.problems: list[Problem] = []

    def report(self, code: str, detail: str, path: Path, fix: str | None = None, at_key: bool = False) -> _Missing:
        self.problems.append(Problem(code=code, path=path, detail=detail, fix=fix, at_key=at_key))
        if len(self.problems) == MOST_MISTAKES:
            raise _TooManyError
        return MISSING

    def value(self, kind: Any, data: Any, path: Path, info: FieldInfo | None) -> Any:
        if kind is Any:
            return data
        members = union_members(kind)
        if len(members) > 1:
            return self.union(members, data, path, info)
        origin = get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self.record(cast(type[Any], kind), data, path)
        if origin is Literal:
            return self.literal(get_args(kind), data, path)
        if origin is tuple:
            return self.items(get_args(kind), data, path, info)
        if origin is not None and issubclass(origin, Mapping):
            return self.mapping(get_args(kind)[1], data, path, info)
        return self.scalar(kind, data, path, info)

    def union(self, members: tuple[Any, ...], data: Any, path: Path, info: FieldInfo | None) -> Any:
        if data is None and types.NoneType in members:
            return None
        rest = [member for member in members if member is not types.NoneType]
        records = {_method(member): member for member in rest if dataclasses.is_dataclass(member)}
        if len(records) > 1:
            return self.discriminated(records, data, path)
        fitting = [member for member in rest if _looks_like(member, data)]
        if fitting:
            return self.value(fitting[0], data, path, info)
        choices = tuple(choice for member in rest if get_origin(member) is Literal for choice in get_args(member))
        if isinstance(data, str) and (len(rest) == 1 or suggest(data, choices)) and choices:
            return self.literal(choices, data, path)
        if len(rest) == 1:
            return self.value(rest[0], data, path, info)
        wanted = " or ".join(_describe(member) for member in rest)
        return self.report("E0202", f"expected {wanted}, got {_show(data)}", path, _form_fix(rest, data, info))

    def discriminated(self, records: Mapping[str, Any], data: Any, path: Path) -> Any:
        if not isinstance(data, dict):
            return self.report("E0202", f"expected a mapping, got {_show(data)}", path)
        data = cast(dict[str, Any], data)
        if "method" not in data:
            return self.report("E0203", "`method` is missing", path, f"one of {_list(list(records))}")
        chosen = self.literal(tuple(records), data["method"], (*path, "method"))
        if isinstance(chosen, _Missing):
            return MISSING
        return self.record(records[chosen], {**data, "method": chosen}, path)

    def record(self, cls: type[Any], data: Any, path: Path) -> Any:
        fields = fields_by_name(cls)
        if not isinstance(data, dict):
            hint = f"its fields are {_list(list(fields))}"
            return self.report("E0202", f"expected a mapping, got {_show(data)}", path, hint)
        data = dict(cast(dict[str, Any], data))
        origin = {name: name for name in data}  # the key as written, where a misspelt one is read as another
        for key in [key for key in data if key not in fields]:
            unset = [name for name in fields if name not in data]
            near = unset if suggest(key, unset) else list(fields)
            fix = field_fix(key, near, path, self.root, self.root_path) or f"its fields are {_list(list(fields))}"
            meant = suggest(key, unset) if fix.startswith("did you mean") else None
            where = f"of `{show_path(path)}`" if path else "of a spec"
            self.report("E0201", f"not a field {where}", (*path, key), fix, at_key=True)
            if meant is not None:
                data[meant] = data[key]
                origin[meant] = key
            del data[key]

        values: dict[str, Any] = {}
        complete = True
        for name, (field, kind) in fields.items():
            if name in data:
                value = self.value(kind, data[name], (*path, origin[name]), field.metadata.get("spec"))
                if not isinstance(value, _Missing):
                    values[field.name] = value
                    continue
            elif is_required(field):
                doc = field.metadata["spec"].doc if "spec" in field.metadata else ""
                self.report("E0203", f"`{name}` is missing", path, f"add `{name}`: {doc}", at_key=True)
            complete = complete and not is_required(field)
        return cls(**values) if complete else MISSING

    def literal(self, choices: tuple[Any, ...], data: Any, path: Path) -> Any:
        for choice in choices:
            if type(choice) is type(data) and choice == data:
                return choice
        guess = suggest(data, [choice for choice in choices if isinstance(choice, str)]) if isinstance(data, str) else None
        fix = f"did you mean `{guess}`?" if guess else None
        allowed = _list(list(choices))
        detail = f"{_show(data)} is not {'one of ' if len(choices) > 1 else ''}{allowed}"
        self.report("E0204", detail, path, fix)
        return guess if guess else MISSING

    def items(self, kinds: tuple[Any, ...], data: Any, path: Path, info: FieldInfo | None) -> Any:
        if not isinstance(data, (list, tuple)):
            return self.report("E0202", f"expected a list, got {_show(data)}", path, _form_fix([tuple[kinds]], data, info))
        rows = cast(Sequence[Any], data)
        repeated = len(kinds) == 2 and kinds[1] is Ellipsis
        if not repeated and len(rows) != len(kinds):
            return self.report("E0202", f"expected a list of {len(kinds)}, got {len(rows)}", path)
        self.count(rows, path, info)
        values = [self.value(kinds[0] if repeated else kinds[i], row, (*path, i), info) for i, row in enumerate(rows)]
        if info is not None and info.is_set:
            for i, row in enumerate(rows):
                if row in rows[:i]:
                    self.report("E0209", f"{_show(row)} stands in this list already", (*path, i), "remove one of the two")
        kept = tuple(value for value in values if not isinstance(value, _Missing))
        return kept if repeated or len(kept) == len(kinds) else MISSING

    def mapping(self, kind: Any, data: Any, path: Path, info: FieldInfo | None) -> Any:
        if not isinstance(data, dict):
            return self.report("E0202", f"expected a mapping, got {_show(data)}", path, "write `name: ...`, one name on each line")
        data = cast(dict[str, Any], data)
        self.count(data, path, info)
        values: dict[str, Any] = {}
        for key, item in data.items():
            if info is not None and info.pattern and not re.fullmatch(info.pattern, key):
                fix = name_fix(key, info.pattern)
                self.report("E0206", f"{_show(key)} does not match {info.pattern}", (*path, key), fix, at_key=True)
            value = self.value(kind, item, (*path, key), None)
            if not isinstance(value, _Missing):
                values[key] = value
        return values

    def count(self, data: Sequence[Any] | Mapping[str, Any], path: Path, info: FieldInfo | None) -> None:
        if info is not None and info.item_minimum_count is not None and len(data) < info.item_minimum_count:
            self.report("E0207", f"needs at least {info.item_minimum_count}, has {len(data)}", path, info.doc)

    def scalar(self, kind: Any, data: Any, path: Path, info: FieldInfo | None) -> Any:
        if not _looks_like(kind, data):
            fix = _form_fix([kind], data, info)
            return self.report("E0202", f"expected {_describe(kind)}, got {_show(data)}", path, fix)
        value = float(data) if kind is float else data
        return value if info is None else self.limits(value, path, info)

    def limits(self, value: Any, path: Path, info: FieldInfo) -> Any:
        if isinstance(value, str):
            if info.pattern and not re.fullmatch(info.pattern, value):
                return self.report("E0206", f"{_show(value)} does not match {info.pattern}", path, name_fix(value, info.pattern))
            known = self.names.get(info.reference) if info.reference else None
            if known is not None and value not in known:
                guess = suggest(value, known)
                fix = f"did you mean `{guess}`?" if guess else f"{info.reference}: {_list(list(known)) or 'there are none'}"
                self.report("E0208", f"{_show(value)} is not one of the {info.reference}", path, fix)
                return guess or MISSING
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            unit = f" {info.unit}" if info.unit else ""
            for limit, inside, words in (
                (info.minimum, operator.ge, "at least"),
                (info.exclusive_minimum, operator.gt, "greater than"),
                (info.maximum, operator.le, "at most"),
                (info.exclusive_maximum, operator.lt, "less than"),
            ):
                if limit is not None and not inside(value, limit):
                    fix = info.limit_reason or share_fix(value, info)
                    return self.report("E0205", f"must be {words} {limit:g}{unit}, is {value:g}", path, fix)
        return value


@cache
def _method(cls: Any) -> str:
    """The value of `method` that selects a dataclass in a union."""
    kind = get_type_hints(cls).get("method")
    return str(get_args(kind)[0]) if kind is not None else cast(type[Any], cls).__name__


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _looks_like(kind: Any, data: Any) -> bool:
    """Whether data is of the outer form of a type."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(type(choice) is type(data) and choice == data for choice in get_args(kind))
    if origin is tuple:
        return isinstance(data, (list, tuple))
    if dataclasses.is_dataclass(kind) or (origin is not None and issubclass(origin, Mapping)):
        return isinstance(data, dict)
    if kind is float:
        return is_finite_number(data)
    if kind is int:
        return isinstance(data, int) and not isinstance(data, bool)
    return isinstance(data, kind)


def _form_fix(kinds: Sequence[Any], data: Any, info: FieldInfo | None) -> str | None:
    """How to write data of another form so that it fits one of the types."""
    if any(get_origin(kind) is tuple for kind in kinds):
        if isinstance(data, dict):
            return "begin each item of the list with `- `"
        return f"write a list: `[{data}]`" if isinstance(data, (str, int, float)) else None
    if isinstance(data, (list, tuple)):
        (only,) = cast(Sequence[Any], data) if len(cast(Sequence[Any], data)) == 1 else (None,)
        return f"write it without brackets: `{only}`" if isinstance(only, (str, int, float)) else None
    if bool in kinds and isinstance(data, str) and data.lower() in ("yes", "no", "on", "off", "y", "n"):
        return "write `true` or `false`"
    if str in kinds and isinstance(data, (bool, int, float)):
        return "put it into quotes, if it is meant"
    number = next((kind for kind in kinds if kind in (int, float)), None)
    return number_fix(number, data, info) if number is not None else None


def _describe(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return _list(list(get_args(kind)))
    if origin is tuple:
        return "a list"
    if dataclasses.is_dataclass(kind) or origin is not None:
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _list(items: Sequence[Any]) -> str:
    return ", ".join(f"`{item}`" for item in items)


def _show(data: Any) -> str:
    if data is None:
        return "nothing"
    if isinstance(data, bool):
        return "true" if data else "false"
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, (list, tuple)):
        return "a list"
    if isinstance(data, str):
        return f"the text {data[:60]!r}"
    return str(data)
