"""compile: a spec becomes a plan."""

import argparse
import json
from pathlib import Path

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_frozen, takes_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    takes_spec(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("plan"), help="folder of the plan (default: plan)")
    takes_frozen(parser)
    parser.add_argument(
        "--show", metavar="PATH", help="print the value at a path, or all below it, and where it came from; writes no plan"
    )


def run(options: argparse.Namespace) -> int:
    """Compile a spec into a plan."""
    if options.show is not None:
        return _show(options)
    from ...compiler.driver import compile_in_memory, publish

    done = publish(compile_in_memory(options.spec, options.set, frozen=options.frozen), options.output)
    plan = done.plan
    assert plan is not None
    if options.json:
        summary = {"recipe_digest": plan.recipe_digest, "exact_digest": plan.exact_digest, "not_proved": list(done.unproved)}
        print_json({"ok": True, "plan": str(options.output), "jobs": [job.id for job in plan.jobs], **summary})
        return ExitCode.OK
    print(f"wrote {options.output}: {len(plan.jobs)} jobs in {len(plan.processes)} processes, recipe {plan.recipe_digest[:12]}")
    for claim in done.unproved:
        print(f"not proved: {claim}")
    if done.unproved:
        print(f"  = polymath lock {options.spec}")
    return ExitCode.OK


def _show(options: argparse.Namespace) -> int:
    from ...compiler.driver import compile_in_memory
    from ...compiler.provenance import find_origins
    from ...compiler.show import show

    done = compile_in_memory(options.spec, options.set, frozen=options.frozen)
    assert done.plan is not None
    found = show(done.plan, find_origins(done), options.show)
    if options.json:
        print_json({"ok": True, "values": {one.path: {"value": one.value, "origin": one.origin} for one in found}})
        return ExitCode.OK
    lines = [(f"{one.path} = {json.dumps(one.value, ensure_ascii=False)}", one.origin) for one in found]
    width = min(72, max(len(left) for left, _ in lines))
    for left, origin in lines:
        print(f"{left:<{width}}  # {origin}")
    return ExitCode.OK


VERB = Verb(name="compile", help="compile a spec into a plan", add_arguments=add_arguments, run=run)
