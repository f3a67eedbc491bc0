"""explain: what a code or a field means."""

import argparse

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="CODE|FIELD", help="a code such as E0201, or a field such as student.sft.warmup")


def run(options: argparse.Namespace) -> int:
    """Say what a code or a field means, with an example."""
    from ...compiler.explain import explain

    text = explain(options.topic)
    if options.json:
        print_json({"ok": True, "topic": options.topic, "text": text})
    else:
        print(text, end="")
    return ExitCode.OK


VERB = Verb(name="explain", help="say what a code or a field means", add_arguments=add_arguments, run=run)
