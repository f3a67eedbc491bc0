"""report: write the report of a run anew."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a run")


def run(options: argparse.Namespace) -> int:
    """Write the report of a run anew."""
    from ..report.page import write_report

    written = write_report(options.folder)
    if options.json:
        print_json({"ok": True, "report": str(written)})
    else:
        print(written)
    return ExitCode.OK


VERB = Verb(name="report", help="write the report of a run anew", add_arguments=add_arguments, run=run)
