"""graph: the job graph as a picture."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json

FORMATS = ("mermaid", "dot", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a spec or a plan's folder")
    parser.add_argument("--format", choices=FORMATS, default="text", help="form of the picture (default: text)")


def run(options: argparse.Namespace) -> int:
    """Draw the job graph of a spec or a plan."""
    from ...compiler.driver import plan_of
    from ...compiler.graph import draw

    plan, _ = plan_of(options.source)
    if options.json:
        print_json({"ok": True, "jobs": [{"id": job.id, "kind": job.kind, "needs": list(job.needs)} for job in plan.jobs]})
    else:
        print(draw(plan, options.format), end="")
    return ExitCode.OK


VERB = Verb(name="graph", help="draw the job graph of a spec or a plan", add_arguments=add_arguments, run=run)
