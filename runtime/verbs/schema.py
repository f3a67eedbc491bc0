"""schema: the JSON Schema of specs, for editors."""

import argparse

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--extending", action="store_true", help="that of a spec that extends another, which may leave things out")


def run(options: argparse.Namespace) -> int:
    """Print the JSON Schema of specs, for editors."""
    from ...specs.schema import extending_schema, recipe_schema

    print_json(extending_schema() if options.extending else recipe_schema())
    return ExitCode.OK


VERB = Verb(name="schema", help="print the JSON Schema of specs", add_arguments=add_arguments, run=run)
