"""graph-import: add a corpus, tools, trajectories or the worlds of a spec to a knowledge-action graph."""

import argparse

from ...specs.diagnostics import ExitCode, UserError
from ..knowledge.kinds import IMPORT_KINDS
from .form import Verb, local_file, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=IMPORT_KINDS, help="what the source holds")
    parser.add_argument("source", help="folder or file, of worlds the spec; trajectories may be a URL")
    parser.add_argument("graph", type=local_file, help="file of the graph; made where it is not there")
    parser.add_argument("--licence", help="SPDX name of the source's licence; episodes over the graph state it")


def run(options: argparse.Namespace) -> int:
    """Add a folder of documents, pages of a wiki, tool documents, trajectories or the worlds of a spec to a graph."""
    from ..knowledge.graph import GraphStore
    from ..knowledge.importers import import_into

    is_new = not options.graph.exists()
    try:
        with GraphStore.create(options.graph) as store:
            count = import_into(store, options.kind, options.source, options.licence)
    except UserError:
        if is_new and options.graph.exists():
            options.graph.unlink()  # nothing is in it
        raise
    if options.json:
        print_json({"ok": True, "graph": str(options.graph), "imported": count})
    else:
        print(f"{count} {options.kind} of {options.source} are in {options.graph}")
    return ExitCode.OK


VERB = Verb(
    name="graph-import", help="add documents, pages, tools, trajectories or worlds to a graph", add_arguments=add_arguments, run=run
)
