"""launch: run a plan, going on where it stopped."""

import argparse
import contextlib
import sys
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, help="folder of the plan")
    takes_run(parser)


def run(options: argparse.Namespace) -> int:
    """Run a plan, going on where it stopped."""
    return launch(options.plan, options)


def launch(plan: Path, options: argparse.Namespace) -> int:
    """Launch a plan; under `--json` what people read goes to stderr and the end to stdout."""
    from ..launch.run import launch_plan

    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        code = launch_plan(plan, run_dir=options.run_dir, port=options.port)
    if options.json:
        print_json({"ok": code == ExitCode.OK, "exit_code": int(code), "plan": str(plan)})
    return code


VERB = Verb(name="launch", help="run a plan, going on where it stopped", add_arguments=add_arguments, run=run)
