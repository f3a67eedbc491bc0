"""validate: say everything that is wrong with a spec."""

import argparse

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    takes_spec(parser)
    parser.add_argument("--routing", action="store_true", help="print which teacher scores which domain, and how much of it")


def run(options: argparse.Namespace) -> int:
    """Say everything that is wrong with a spec."""
    from ...compiler.driver import check_spec
    from ...compiler.routing import routing_table, show_table
    from ...specs.build import to_json

    checked = check_spec(options.spec, options.set)
    spec = checked.spec
    assert spec is not None
    table = routing_table(spec, checked.owners)
    if options.json:
        print_json({"ok": True, "diagnostics": [], **({"routing": to_json(table)} if options.routing else {})})
        return ExitCode.OK
    teachers = f"{len(spec.teachers)} teacher{'' if len(spec.teachers) == 1 else 's'}"
    print(f"{options.spec} is valid: {len(spec.domains)} domains, {teachers}")
    if options.routing:
        print(show_table(table) if table else "no teacher scores anything: there is no `student.distill`")
    return ExitCode.OK


VERB = Verb(name="validate", help="say everything that is wrong with a spec", add_arguments=add_arguments, run=run)
