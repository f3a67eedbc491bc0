"""Worlds that installed packages bring, as far as they are known without running a line of them.

A package names its world in the entry point group `polymath.worlds`: `maze = "my_package.maze:build"`. Beside the module it may
ship `maze.schema.json`, the JSON Schema of the world's settings: a spec is checked against it, defaults are filled in, and a
setting of the format `uri-reference` is a file or folder that the world reads. The package is never imported here.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .diagnostics import ExitCode, UserError

WORLD_GROUP = "polymath.worlds"
CODE_SUFFIXES = (".py", ".json", ".so")


def installed_worlds() -> dict[str, str]:
    """The worlds that installed packages bring: name to `module:callable`."""
    from importlib.metadata import entry_points  # 15 ms that other specs need not wait for

    return {point.name: point.value for point in entry_points(group=WORLD_GROUP)}


def settings_schema(world: str) -> dict[str, Any] | None:
    """The JSON Schema of an installed world's settings; None where it ships none, or no package brings such a world.

    Raises:
        UserError: the file is not a JSON Schema of an object (exit 5).
    """
    module = _module_file(world)
    if module is None:
        return None
    file, last = module
    path = file.with_name(f"{last}.schema.json")
    if not path.is_file():
        return None
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(world, path, str(error)) from error
    if not isinstance(schema, dict) or cast(dict[str, Any], schema).get("type") != "object":
        raise _broken(world, path, "not the JSON Schema of an object")
    return cast(dict[str, Any], schema)


def properties_of(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that a schema describes, by name; those it says nothing of are left out."""
    properties: dict[str, Any] = schema.get("properties", {})
    return {name: cast(dict[str, Any], one) for name, one in properties.items() if isinstance(one, dict)}


def code_digest(world: str) -> str | None:
    """The hash of the code that brings a world: of its whole top-level package, or its one module; None where it has no file."""
    module = _module_file(world)
    if module is None:
        return None
    top = _top_level(world)
    content = hashlib.sha256()
    for file in _files(top) if top is not None and top.is_dir() else [module[0]]:
        name = file.name if top is None else file.relative_to(top.parent).as_posix()
        content.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()


def _broken(world: str, path: Path, why: str) -> UserError:
    message = f"world `{world}` is installed with settings in {path.name} that cannot be read: {why}"
    return UserError(message, exit_code=ExitCode.UNFIT, fix="mend or reinstall the package that brings it")


def _top_level(world: str) -> Path | None:
    """The folder of the top-level package, or the file of the top-level module."""
    from importlib.util import find_spec

    target = installed_worlds().get(world)
    if target is None:
        return None
    spec = find_spec(target.partition(":")[0].partition(".")[0])  # of a top-level name: nothing is imported
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.has_location and spec.origin else None


def _module_file(world: str) -> tuple[Path, str] | None:
    """The file of the module that brings a world, and the last part of the module's name."""
    top = _top_level(world)
    if top is None:
        return None
    first, *rest = installed_worlds()[world].partition(":")[0].split(".")
    if not top.is_dir():
        return (top, first) if not rest else None
    base = top.joinpath(*rest)
    for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if file.is_file():
            return file, (rest or [first])[-1]
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.suffix in CODE_SUFFIXES and file.is_file())
