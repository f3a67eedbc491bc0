"""validate: say everything that is wrong with a spec."""

import argparse

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_spec


def run(options: argparse.Namespace) -> int:
    """Say everything that is wrong with a spec."""
    from ...compiler.driver import check_spec

    spec = check_spec(options.spec, options.set).spec
    assert spec is not None
    if options.json:
        print_json({"ok": True, "diagnostics": []})
    else:
        teachers = f"{len(spec.teachers)} teacher{'' if len(spec.teachers) == 1 else 's'}"
        print(f"{options.spec} is valid: {len(spec.domains)} domains, {teachers}")
    return ExitCode.OK


VERB = Verb(name="validate", help="say everything that is wrong with a spec", add_arguments=takes_spec, run=run)
