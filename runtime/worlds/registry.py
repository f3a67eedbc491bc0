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
from ...specs.generators import GENERATOR_WORLDS
from ...specs.installed import WORLD_GROUP, code_digest
from ...specs.model import Domain
from ...specs.worlds import BUILTIN_WORLDS, locations_of
from ..jobs import JobContext
from .bfcl.multi_turn import BfclMultiTurnWorld
from .bfcl.single import BfclWorld
from .engineering import EngineeringWorld
from .gsm8k import Gsm8kWorld
from .ifbench.world import IfBenchWorld
from .instructions import InstructionsWorld
from .ledger import LedgerWorld
from .mcp.world import McpWorld
from .protocol import World
from .science import ScienceWorld
from .scientific_tools import ScientificToolsWorld
from .search import SearchWorld
from .tools import ToolsWorld
from .trail import TrailWorld

CLASSES: Mapping[str, Callable[[Any], World]] = {
    "search": SearchWorld,
    "engineering": EngineeringWorld,
    "science": ScienceWorld,
    "instructions": InstructionsWorld,
    "tools": ToolsWorld,
    "scientific_tools": ScientificToolsWorld,
    "trail": TrailWorld,
    "ledger": LedgerWorld,
    "gsm8k": Gsm8kWorld,
    "bfcl": BfclWorld,
    "bfcl_multi_turn": BfclMultiTurnWorld,
    "ifbench": IfBenchWorld,
    "mcp": McpWorld,
}


def open_world(context: JobContext, name: str, domain: Domain) -> World:
    """The world of a domain as a job plays in it: its files found through the plan, and held against what was locked.

    Raises:
        UserError: as `make_world`; or a file, or the code of the package that brings the world, is not the plan's (exit 4).
    """
    assert domain.world is not None
    return make_world(domain.world, verified_settings(context, name, domain))


def verified_settings(context: JobContext, name: str, domain: Domain) -> dict[str, Any]:
    """The settings of a domain's world, its files where they lie on this machine; see `open_world`."""
    assert domain.world is not None
    settings = dict(domain.settings)
    for field in locations_of(domain.world, settings):
        settings[field] = context.source(f"world.{name}.{field}")
        context.verify_source(f"world.{name}.{field}")
    code = context.job.inputs.get(f"world.{name}.code")
    if code is not None and code.digest != code_digest(domain.world):
        raise UserError(
            f"the code of world `{domain.world}` has changed since the plan was made",
            exit_code=ExitCode.STALE,
            fix="compile again, or install the package as it was",
        )
    return settings


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
    if name in GENERATOR_WORLDS:
        from ..knowledge.generators.registry import make_generator  # which imports worlds

        return make_generator(name, settings)
    brought = {point.name: point for point in entry_points(group=WORLD_GROUP)}
    if name in brought:
        try:
            build = brought[name].load()
        except (ImportError, AttributeError) as error:
            message = f"world `{name}` is installed as `{brought[name].value}`, which does not load: {error}"
            raise UserError(message, exit_code=ExitCode.UNFIT, fix="mend or reinstall the package that brings it") from error
        return build(settings)
    known = sorted({*BUILTIN_WORLDS, *brought})
    close = difflib.get_close_matches(name, known, n=1)
    fix = f"did you mean `{close[0]}`?" if close else f"known worlds: {', '.join(known)}"
    raise UserError(f"no world is called `{name}`", exit_code=ExitCode.SPEC, fix=fix)
