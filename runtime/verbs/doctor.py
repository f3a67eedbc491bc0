"""doctor: whether this machine can run Polymath, and a plan."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", type=Path, nargs="?", help="folder of a plan to hold this machine against")


def run(options: argparse.Namespace) -> int:
    """Check the versions, devices, sandbox, disk and network of this machine; exit code 5 where something fails."""
    from ...specs.build import to_json
    from ..launch.doctor import examine

    found = examine(options.plan)
    code = ExitCode.UNFIT if any(one.status == "fail" for one in found) else ExitCode.OK
    if options.json:
        print_json({"ok": code == ExitCode.OK, "findings": to_json(found)})
        return code
    width = max(len(one.what) for one in found)
    for one in found:
        print(f"{one.status:<4}  {one.what:<{width}}  {one.detail}")
    return code


VERB = Verb(name="doctor", help="check this machine, against a plan if one is given", add_arguments=add_arguments, run=run)
