"""schema: the JSON Schema of specs, for editors."""

import argparse

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json


def run(options: argparse.Namespace) -> int:
    """Print the JSON Schema of specs, for editors."""
    from ...specs.schema import recipe_schema

    print_json(recipe_schema())
    return ExitCode.OK


VERB = Verb(name="schema", help="print the JSON Schema of specs", run=run)
