"""diff: what differs between two plans or specs, and which jobs run again because of it."""

import argparse
import json
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json

HEADINGS = {
    "numerics": "numerics (the weights that come out)",
    "placement": "placement (where and how fast)",
    "label": "label (names only)",
}
MOST = 4  # causes of a job that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, help="a plan's folder or a spec")
    parser.add_argument("after", type=Path, help="a plan's folder or a spec")


def run(options: argparse.Namespace) -> int:
    """Say what differs between two plans or specs, and which jobs run again because of it; exit code 2 where something does."""
    from ...compiler.differences import compare
    from ...compiler.driver import plan_of
    from ...specs.build import to_json

    found = compare(*plan_of(options.before), *plan_of(options.after))
    code = ExitCode.DIFF if found else ExitCode.OK
    if options.json:
        print_json({"ok": True, "differs": bool(found), **to_json(found)})
        return code
    if not found:
        print("nothing differs")
        return code
    for identity, heading in HEADINGS.items():
        changes = [one for one in found.changes if one.identity == identity]
        if changes:
            print(heading)
        for one in changes:
            print(f"  {one.path}: {_show(one.before)} -> {_show(one.after)}   # {one.origin}")
    if found.reruns:
        print("jobs that run again")
    for rerun in found.reruns:
        more = f" and {len(rerun.causes) - MOST} more" if len(rerun.causes) > MOST else ""
        print(f"  {rerun.job}: {', '.join(rerun.causes[:MOST])}{more}")
    for heading, jobs in (
        ("jobs that are gone", found.removed),
        ("jobs that are kept, and would be computed otherwise", found.replaced),
        ("jobs that are kept as they are", [job for job in found.reused if job not in found.replaced]),
    ):
        if jobs:
            print(f"{heading}\n  {', '.join(jobs)}")
    return code


def _show(value: Any) -> str:
    return value if value == "not set" else json.dumps(value, ensure_ascii=False)


VERB = Verb(name="diff", help="say what differs between two plans or specs", add_arguments=add_arguments, run=run)
