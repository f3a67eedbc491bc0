"""status: how far a run is."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of a run or a plan")


def run(options: argparse.Namespace) -> int:
    """Say how far a run is."""
    from ..launch.status import print_status

    print_status(options.folder, json=options.json)
    return ExitCode.OK


VERB = Verb(name="status", help="say how far a run is", add_arguments=add_arguments, run=run)
