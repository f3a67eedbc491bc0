"""The settings of worlds that packages bring, checked against the JSON Schema that the package ships. Its code is not run."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from ..specs.build import Path, Problem, suggest
from ..specs.installed import properties_of, settings_schema

CODES = {
    "type": "E0202",
    "enum": "E0204",
    "const": "E0204",
    "minimum": "E0205",
    "exclusiveMinimum": "E0205",
    "maximum": "E0205",
    "exclusiveMaximum": "E0205",
    "multipleOf": "E0205",
    "pattern": "E0206",
    "minItems": "E0207",
    "minProperties": "E0207",
}  # by the keyword of JSON Schema that a value fails; E0204 for every other


def check_settings(world: str, settings: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The settings with the schema's defaults, and every mistake. A world without a schema takes what is written.

    Raises:
        UserError: the package's schema cannot be used (exit 5).
    """
    schema = settings_schema(world)
    if schema is None:
        return dict(settings), []
    from jsonschema import Draft202012Validator  # 60 ms that only these worlds cost

    errors: list[Any] = sorted(cast(Any, Draft202012Validator(schema)).iter_errors(dict(settings)), key=_place)
    problems = [problem for error in errors for problem in _problems(error, path)]
    defaults = {name: one["default"] for name, one in properties_of(schema).items() if "default" in one}
    return {**defaults, **settings}, problems


def _place(error: Any) -> list[str]:
    return [str(step) for step in error.absolute_path]


def _problems(error: Any, path: Path) -> Iterator[Problem]:
    here: Path = (*path, *error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        for name in error.instance:
            if name not in known:
                guess = suggest(name, known)
                fix = f"did you mean `{guess}`?" if guess else f"settings: {', '.join(f'`{one}`' for one in known)}"
                detail = "the world's schema knows no such setting"
                yield Problem(code="E0201", path=(*here, name), detail=detail, fix=fix, at_key=True)
    elif error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance and f"'{name}'" in error.message)
        yield Problem(code="E0203", path=here, detail=f"the world needs `{missing}`", fix=f"add `{missing}`", at_key=True)
    else:
        yield Problem(code=CODES.get(error.validator, "E0204"), path=here, detail=error.message)
