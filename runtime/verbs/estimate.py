"""estimate: what a spec will need, and the formula behind each number."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    takes_spec(parser)
    parser.add_argument("--calibrate", type=Path, metavar="RUN", help="a run directory whose steps say how fast devices are")
    parser.add_argument("--brief", action="store_true", help="print one line for each job, without formulas")


def run(options: argparse.Namespace) -> int:
    """Estimate memory, FLOPs, time and cost of every job of a spec."""
    from ...compiler.estimates.show import brief, full
    from ...compiler.estimates.spec import estimate_spec
    from ...specs.build import to_json

    estimate = estimate_spec(options.spec, options.set, options.calibrate)
    if options.json:
        print_json({"ok": True, **to_json(estimate)})
        return ExitCode.OK
    for line in brief(estimate) if options.brief else full(estimate):
        print(line)
    return ExitCode.OK


VERB = Verb(name="estimate", help="memory, FLOPs, time and cost of every job, with formulas", add_arguments=add_arguments, run=run)
