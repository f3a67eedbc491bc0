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
    parser.add_argument("--dry-run", action="store_true", help="print the command and environment of every role; start nothing")


def run(options: argparse.Namespace) -> int:
    """Run a plan, going on where it stopped."""
    if options.dry_run:
        return _dry_run(options)
    return launch(options.plan, options)


def launch(plan: Path, options: argparse.Namespace) -> int:
    """Launch a plan; under `--json` what people read goes to stderr and the end to stdout."""
    from ..launch.run import launch_plan

    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        code = launch_plan(plan, run_dir=options.run_dir, port=options.port)
    if options.json:
        print_json({"ok": code == ExitCode.OK, "exit_code": int(code), "plan": str(plan)})
    return code


def _dry_run(options: argparse.Namespace) -> int:
    from ...specs.build import to_json
    from ..launch.dry_run import dry_run, show

    planned = dry_run(options.plan, run_dir=options.run_dir, port=options.port)
    if options.json:
        print_json({"ok": True, **to_json(planned)})
    else:
        print(show(planned))
    return ExitCode.OK


VERB = Verb(name="launch", help="run a plan, going on where it stopped", add_arguments=add_arguments, run=run)
