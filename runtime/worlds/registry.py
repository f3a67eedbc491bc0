"""Worlds by name: the built-in ones, and those that installed packages bring.

A package brings a world by an entry point in the group `polymath.worlds` whose value is a callable `(settings: dict) -> World`.
Built-in names cannot be taken over.
"""

import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from ...specs.build import from_json
from ...specs.diagnostics import ExitCode, UserError
from ...specs.worlds import BUILTIN_WORLDS
from .base import GraphWorld
from .engineering import EngineeringWorld
from .instructions import InstructionsWorld
from .ledger import LedgerWorld
from .protocol import World
from .science import ScienceWorld
from .scientific_tools import ScientificToolsWorld
from .search import SearchWorld
from .tools import ToolsWorld
from .trail import TrailWorld

GROUP = "polymath.worlds"
CLASSES: Mapping[str, Callable[[Any], GraphWorld]] = {
    "search": SearchWorld,
    "engineering": EngineeringWorld,
    "science": ScienceWorld,
    "instructions": InstructionsWorld,
    "tools": ToolsWorld,
    "scientific_tools": ScientificToolsWorld,
    "trail": TrailWorld,
    "ledger": LedgerWorld,
}


def make_world(name: str, settings: dict[str, Any]) -> World:
    """A world with its settings applied.

    Raises:
        UserError: no such world, or settings that it does not take (exit 3); or a machine that cannot run it (exit 5).
    """
    if name in CLASSES:
        try:
            return CLASSES[name](from_json(BUILTIN_WORLDS[name], settings))
        except ValueError as error:
            raise UserError(f"settings of world `{name}`: {error}", exit_code=ExitCode.SPEC) from error
    brought = {point.name: point for point in entry_points(group=GROUP)}
    if name in brought:
        try:
            build = brought[name].load()
        except (ImportError, AttributeError) as error:
            message = f"world `{name}` is installed as `{brought[name].value}`, which does not load: {error}"
            raise UserError(message, exit_code=ExitCode.UNFIT, fix="mend or reinstall the package that brings it") from error
        return build(settings)
    known = sorted({*CLASSES, *brought})
    close = difflib.get_close_matches(name, known, n=1)
    fix = f"did you mean `{close[0]}`?" if close else f"known worlds: {', '.join(known)}"
    raise UserError(f"no world is called `{name}`", exit_code=ExitCode.SPEC, fix=fix)
