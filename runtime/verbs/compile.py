"""compile: a spec becomes a plan."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    takes_spec(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("plan"), help="folder of the plan (default: plan)")


def run(options: argparse.Namespace) -> int:
    """Compile a spec into a plan."""
    from ...compiler.driver import compile_spec
    from ...compiler.lock import lock_path

    plan = compile_spec(options.spec, options.output, options.set)
    sources = {one.source for job in plan.jobs for one in job.inputs.values() if one.source}
    unproved = [] if lock_path(options.spec).is_file() else sorted(sources)
    if options.json:
        summary = {"recipe_digest": plan.recipe_digest, "exact_digest": plan.exact_digest, "not_proved": unproved}
        print_json({"ok": True, "plan": str(options.output), "jobs": [job.id for job in plan.jobs], **summary})
        return ExitCode.OK
    print(f"wrote {options.output}: {len(plan.jobs)} jobs in {len(plan.processes)} processes, recipe {plan.recipe_digest[:12]}")
    if unproved:
        print(f"not proved without a lock: that every row of {', '.join(unproved)} can be read")
        print(f"  = polymath lock {options.spec}")
    return ExitCode.OK


VERB = Verb(name="compile", help="compile a spec into a plan", add_arguments=add_arguments, run=run)
