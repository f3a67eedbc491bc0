"""graph-query: look into a knowledge-action graph."""

import argparse
from typing import Any

from ...specs.diagnostics import ExitCode
from ..knowledge.kinds import EDGE_KINDS, NODE_KINDS
from .form import Verb, print_json, whole_number

SHOWN_CHARACTERS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("graph", help="path or URL of the graph")
    parser.add_argument("--find", metavar="WORDS", help="evidence, facts and constraints that hold the words, the best first")
    parser.add_argument("--kind", choices=NODE_KINDS, help="nodes of a kind")
    parser.add_argument("--name", help="nodes of a name, or tasks of a key")
    parser.add_argument("--from", dest="start", metavar="ID", help="what a node or state leads to")
    parser.add_argument("--to", dest="end", metavar="ID", help="what leads to a node or state")
    parser.add_argument("--edge", choices=EDGE_KINDS, help="follow edges of this kind only")
    parser.add_argument("--depth", type=whole_number(1), default=1, help="edges to follow (default 1)")
    parser.add_argument("--steps", metavar="TASK", help="the step records below a task, failed branches too")
    parser.add_argument("--limit", type=whole_number(1), default=20, help="most lines (default 20)")


def run(options: argparse.Namespace) -> int:
    """Look into a knowledge-action graph: a summary, or the nodes and steps that are asked for."""
    from ..knowledge.graph import GraphStore

    with GraphStore.open(options.graph) as store:
        rows = _rows(store, options)
        if rows is None:
            summary = store.summary()
            if options.json:
                print_json({"ok": True, **summary})
            else:
                for name, value in summary.items():
                    counts = ", ".join(f"{count} {kind}" for kind, count in value.items()) if isinstance(value, dict) else value
                    print(f"{name}: {counts or 'none'}")
        elif options.json:
            print_json({"ok": True, "rows": rows})
        else:
            for row in rows:
                print("  ".join(_shown(value) for value in row.values()))
    return ExitCode.OK


def _rows(store: Any, options: argparse.Namespace) -> list[dict[str, Any]] | None:
    if options.steps:
        columns = ("id", "state", "action", "observation", "verdict", "readable", "evidence")
        query = f"SELECT {', '.join(columns)} FROM steps WHERE task = ? LIMIT ?"
        return [dict(zip(columns, row, strict=True)) for row in store.sql.execute(query, (options.steps, options.limit))]
    if options.start or options.end:
        reached = store.reach(options.start or options.end, options.edge, options.depth, back=options.start is None)
        return [{"distance": distance} | _node(store, identity) for identity, distance in [*reached.items()][1 : options.limit + 1]]
    if options.find:
        return [_as_row(node) for node in store.find(options.find, options.limit)]
    if options.kind or options.name:
        found = store.nodes(options.kind, options.name)
        return [_as_row(node) for node, _ in zip(found, range(options.limit), strict=False)]
    return None


def _node(store: Any, identity: str) -> dict[str, Any]:
    node = store.node(identity)
    return _as_row(node) if node else {"id": identity, "kind": "state", "name": "", "body": ""}


def _as_row(node: Any) -> dict[str, Any]:
    return {"id": node.id, "kind": node.kind, "name": node.name, "body": node.body}


def _shown(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


VERB = Verb(name="graph-query", help="look into a knowledge-action graph", add_arguments=add_arguments, run=run)
