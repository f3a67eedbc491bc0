"""Generators by name."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....specs.diagnostics import ExitCode, UserError
from ....specs.hints import show_path
from ....specs.worlds import build_settings
from ..graph import GraphStore
from .base import TaskGenerator
from .constraints import Constraints
from .engineering_tree import EngineeringTree
from .long_context import LongContext
from .science_rewrites import ScienceRewrites
from .scientific_chains import ScientificChains
from .search_walks import SearchWalks
from .tool_subgraphs import ToolSubgraphs

GENERATORS: Mapping[str, type[TaskGenerator]] = {
    "search_walks": SearchWalks,
    "engineering_tree": EngineeringTree,
    "science_rewrites": ScienceRewrites,
    "constraints": Constraints,
    "long_context": LongContext,
    "tool_subgraphs": ToolSubgraphs,
    "scientific_chains": ScientificChains,
}


def make_generator(name: str, settings: Mapping[str, Any], store: GraphStore | None = None) -> TaskGenerator:
    """A generator with its settings applied, over a graph of the user's or over what it invents.

    Raises:
        UserError: no such generator, or settings that it does not take (exit 3).
    """
    if name not in GENERATORS:
        fix = f"generators: {', '.join(GENERATORS)}"
        raise UserError(f"no generator is called `{name}`", exit_code=ExitCode.SPEC, fix=fix)
    read, problems = build_settings(name, settings, ())
    if problems:
        said = "; ".join(f"{show_path(one.path) or 'the value'}: {one.detail}" for one in problems)
        raise UserError(f"settings of generator `{name}`: {said}", exit_code=ExitCode.SPEC, fix=problems[0].fix)
    if store is None:
        store = GraphStore.open(read.graph) if getattr(read, "graph", None) else scratch_graph()
    kind = GENERATORS[name].chosen(read)
    kind.furnish(store, read)
    return kind(store, read)


def scratch_graph() -> GraphStore:
    """A graph that goes when the process does."""
    folder = tempfile.TemporaryDirectory(prefix="polymath-graph-")
    store = GraphStore.create(Path(folder.name, "graph.sqlite"))
    store.sql.execute("PRAGMA synchronous = OFF")
    store.keep(folder)
    return store
