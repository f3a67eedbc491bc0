"""graph-query: look into a knowledge-action graph."""

import argparse
import sys
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
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
    parser.add_argument("--depth", type=whole_number(1), help="edges to follow (default 1)")
    parser.add_argument("--steps", metavar="TASK", help="the step records below a task, failed branches too")
    parser.add_argument("--limit", type=whole_number(1), default=20, help="most lines (default 20)")


def run(options: argparse.Namespace) -> int:
    """Look into a knowledge-action graph: a summary, or the nodes and steps that are asked for."""
    from ..knowledge.graph import GraphStore

    _refuse_what_would_be_ignored(options)
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
            if not rows:
                print("nothing found", file=sys.stderr)
    return ExitCode.OK


def _refuse_what_would_be_ignored(options: argparse.Namespace) -> None:
    asked = [name for name, given in (
        ("--steps", options.steps), ("--from", options.start), ("--to", options.end), ("--find", options.find),
        ("--kind or --name", options.kind or options.name)) if given is not None]  # fmt: skip
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are two questions", exit_code=ExitCode.USAGE, fix="ask one at a time")
    for name, given in (("--edge", options.edge), ("--depth", options.depth)):
        if given is not None and not {"--from", "--to"} & set(asked):
            raise UserError(f"{name} says how to go on from a node", exit_code=ExitCode.USAGE, fix="name one: --from ID or --to ID")
    if options.find is not None and not any(one.isalnum() for one in options.find):
        raise UserError("--find has no word in it", exit_code=ExitCode.USAGE, fix="give words, such as --find 'mouth of a river'")


def _rows(store: Any, options: argparse.Namespace) -> list[dict[str, Any]] | None:
    if options.steps is not None:
        _check_known(store, options.steps)
        columns = ("id", "state", "action", "observation", "verdict", "readable", "evidence")
        query = f"SELECT {', '.join(columns)} FROM steps WHERE task = ? LIMIT ?"
        return [dict(zip(columns, row, strict=True)) for row in store.sql.execute(query, (options.steps, options.limit))]
    if (start := options.end if options.start is None else options.start) is not None:
        _check_known(store, start)
        reached = store.reach(start, options.edge, options.depth or 1, back=options.start is None)
        return [{"distance": distance} | _node(store, identity) for identity, distance in [*reached.items()][1 : options.limit + 1]]
    if options.find is not None:
        return [_as_row(node) for node in store.find(options.find, options.limit)]
    if options.kind is not None or options.name is not None:
        found = store.nodes(options.kind, options.name)
        return [_as_row(node) for node, _ in zip(found, range(options.limit), strict=False)]
    return None


def _check_known(store: Any, identity: str) -> None:
    """Refuse what is no node and no state; a name is not an id."""
    known = "SELECT 1 FROM nodes WHERE id = ?1 UNION ALL SELECT 1 FROM steps WHERE id = ?1 OR state = ?1 LIMIT 1"
    if store.sql.execute(known, (identity,)).fetchone() is None:
        named = next(store.nodes(name=identity), None)
        fix = f"that is a name; its id is {named.id}" if named else "ids stand first in what --find, --kind and --name list"
        raise UserError(f"the graph has no node or state with the id {identity}", exit_code=ExitCode.USAGE, fix=fix)


def _node(store: Any, identity: str) -> dict[str, Any]:
    node = store.node(identity)
    return _as_row(node) if node else {"id": identity, "kind": "state", "name": "", "body": ""}


def _as_row(node: Any) -> dict[str, Any]:
    return {"id": node.id, "kind": node.kind, "name": node.name, "body": node.body}


def _shown(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


VERB = Verb(name="graph-query", help="look into a knowledge-action graph", add_arguments=add_arguments, run=run)
