"""fmt: the fields of a spec in canonical order, with its comments."""

import argparse
from pathlib import Path

from ...specs.diagnostics import ExitCode, SpecInvalid
from .form import Verb, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=Path, nargs="+", help="the YAML specs, which are rewritten in place")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 2 where a spec is not in order")


def run(options: argparse.Namespace) -> int:
    """Put the fields of specs into canonical order; comments stay with what they are about."""
    from ...compiler.store import replace_file
    from ...specs.format import format_spec
    from ...specs.yaml import read_file

    changed: list[Path] = []
    for path in options.spec:
        document = read_file(path, str(path))
        if document.diagnostics:
            raise SpecInvalid(document.diagnostics, {str(path): document.text})
        formatted = format_spec(document.text)
        if formatted != document.text:
            changed.append(path)
            if not options.check:
                target = path.resolve()  # through a link, the file that it leads to
                replace_file(target, formatted, target.stat().st_mode)
    if options.json:
        print_json({"ok": not (options.check and changed), "changed": [str(path) for path in changed]})
    else:
        for path in changed:
            print(f"{path} is not in order" if options.check else f"wrote {path}")
    return ExitCode.DIFF if options.check and changed else ExitCode.OK


VERB = Verb(name="fmt", help="put the fields of a spec into canonical order", add_arguments=add_arguments, run=run)
