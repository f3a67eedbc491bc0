"""JSON Schema 2020-12 of a spec, generated from the dataclasses; the files beside this one are checked fresh by a test:
`recipe.v1.json` for a spec that stands alone, `extending.v1.json` for one that `extends` another and so may leave anything out.

Editors read a subset of the standard, so unions are told apart by a `const` under `if` and `then`, objects are closed by
`additionalProperties: false`, and nothing needs `unevaluatedProperties`.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args, get_origin

from ..build import fields_by_name, is_required, to_json, union_members
from ..fields import LOCATION_FORMAT, FieldInfo
from ..model import Spec
from ..worlds import BUILTIN_WORLDS

SCHEMA_ID = "https://polymath.invalid/schema/recipe.v1.json"
EXTENDING_ID = "https://polymath.invalid/schema/extending.v1.json"
NAMED = ("domains", "teachers")  # collections of the user's names
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean"}


def recipe_schema() -> dict[str, Any]:
    """The whole schema."""
    definitions: dict[str, Any] = {}
    _reference(Spec, definitions)
    spec = definitions.pop("Spec")
    domain = definitions["Domain"]
    domain["allOf"] = [_world_settings(name, settings, definitions) for name, settings in BUILTIN_WORLDS.items()]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, "title": "Polymath recipe, version 1"}
    return {**head, **{key: value for key, value in spec.items() if key != "title"}, "$defs": dict(sorted(definitions.items()))}


def extending_schema() -> dict[str, Any]:
    """The schema of a spec that extends another: no block is complete, except what stands in a list, as lists replace; a name may
    be taken away by null."""
    schema: dict[str, Any] = {**recipe_schema(), "$id": EXTENDING_ID, "title": "Polymath recipe that extends another, version 1"}
    whole = set(_in_lists(schema, inside=False))
    for name, definition in schema["$defs"].items():
        if name not in whole:
            definition["required"] = []
    named = {
        name: {**schema["properties"][name], "additionalProperties": {"anyOf": [inner, {"type": "null"}]}}
        for name in NAMED
        if (inner := schema["properties"][name]["additionalProperties"])
    }
    return {**schema, "properties": {**schema["properties"], **named}, "required": ["extends"]}


def _in_lists(node: Any, *, inside: bool) -> Iterator[str]:
    """The names of the definitions that items of lists refer to."""
    if isinstance(node, dict):
        for key, value in cast(dict[str, Any], node).items():
            if key == "$ref" and inside:
                yield str(value).rpartition("/")[2]
            yield from _in_lists(value, inside=inside or key == "items")
    elif isinstance(node, list):
        for item in cast(list[Any], node):
            yield from _in_lists(item, inside=inside)


def _world_settings(name: str, settings: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    condition = {"properties": {"world": {"const": name}}, "required": ["world"]}
    return {"if": condition, "then": {"properties": {"settings": _reference(settings, definitions)}}}


def _reference(cls: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    name = cls.__name__
    if name not in definitions:
        definitions[name] = {}  # reserves the name
        definitions[name] = _record(cls, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _record(cls: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    fields = fields_by_name(cls)
    return {
        "title": cls.__name__,
        "description": " ".join((cls.__doc__ or "").split()),
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, (field, _) in fields.items() if is_required(field)],
        "properties": {name: _property(name, field, kind, definitions) for name, (field, kind) in fields.items()},
    }


def _property(name: str, field: dataclasses.Field[Any], kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    info: FieldInfo = field.metadata["spec"]
    unit = f" Unit: {info.unit}." if info.unit else ""
    found = {"title": name, "description": info.doc + unit, **_type(kind, info, definitions), "x-identity": info.identity.value}
    if field.default is not dataclasses.MISSING:
        found["default"] = to_json(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        found["default"] = to_json(field.default_factory())
    examples = list(info.examples) or _examples(kind, found)
    if examples:
        found["examples"] = examples
    return found


def _examples(kind: Any, found: Mapping[str, Any]) -> list[Any]:
    """An example where the declaration has none: a choice, the default, or the limit."""
    if get_origin(kind) is Literal:
        return [get_args(kind)[0]]
    if found.get("default") is not None:
        return [found["default"]]
    return [found["minimum"]] if "minimum" in found else []


def _type(kind: Any, info: FieldInfo | None, definitions: dict[str, Any]) -> dict[str, Any]:
    members = union_members(kind)
    if len(members) > 1:
        return _union(members, info, definitions)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind is types.NoneType:
        return {"type": "null"}
    if dataclasses.is_dataclass(kind):
        return _reference(cast(type[Any], kind), definitions)
    if origin is Literal:
        return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
    if origin is tuple:
        return _list(arguments, info, definitions)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(arguments[1], info, definitions)
    return {"type": _SCALARS[kind], **_limits(kind, info)}


def _union(members: tuple[Any, ...], info: FieldInfo | None, definitions: dict[str, Any]) -> dict[str, Any]:
    records = [member for member in members if dataclasses.is_dataclass(member)]
    if len(records) > 1:
        methods = {get_args(fields_by_name(cast(type[Any], one))["method"][1])[0]: cast(type[Any], one) for one in records}
        branches = [
            {"if": {"properties": {"method": {"const": method}}}, "then": _reference(record, definitions)}
            for method, record in methods.items()
        ]
        discriminator = {"type": "object", "required": ["method"], "properties": {"method": {"enum": list(methods)}}}
        return {**discriminator, "allOf": branches}
    return {"anyOf": [_type(member, info, definitions) for member in members]}


def _list(arguments: tuple[Any, ...], info: FieldInfo | None, definitions: dict[str, Any]) -> dict[str, Any]:
    if arguments[-1] is not Ellipsis:
        items = [_type(one, info, definitions) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    found: dict[str, Any] = {"type": "array", "items": _type(arguments[0], info, definitions)}
    if info is not None and info.item_minimum_count is not None:
        found["minItems"] = info.item_minimum_count
    if info is not None and info.is_set:
        found["uniqueItems"] = True
    return found


def _mapping(inner: Any, info: FieldInfo | None, definitions: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "additionalProperties": _type(inner, None, definitions) or True}
    if info is not None and info.item_minimum_count is not None:
        found["minProperties"] = info.item_minimum_count
    if info is not None and info.pattern:
        found["propertyNames"] = {"pattern": info.pattern}
    return found


def _limits(kind: Any, info: FieldInfo | None) -> dict[str, Any]:
    if info is None:
        return {}
    if kind is str:
        return {**({"pattern": info.pattern} if info.pattern else {}), **({"format": LOCATION_FORMAT} if info.location else {})}
    if kind not in (int, float):
        return {}
    limits = {
        "minimum": info.minimum,
        "exclusiveMinimum": info.exclusive_minimum,
        "maximum": info.maximum,
        "exclusiveMaximum": info.exclusive_maximum,
    }
    return {name: limit for name, limit in limits.items() if limit is not None}
