"""init: write a commented, valid spec."""

import argparse
from importlib.resources import files
from pathlib import Path

from ...specs.diagnostics import ExitCode, UserError
from .form import Verb, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=Path, help="the file to write")


def run(options: argparse.Namespace) -> int:
    """Write a commented, valid spec."""
    target: Path = options.spec
    template = files("polymath.specs").joinpath("init.yaml").read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(template)
    except FileExistsError as error:
        raise UserError(f"{target} exists", exit_code=ExitCode.USAGE, fix="choose another name; nothing was changed") from error
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}", exit_code=ExitCode.USAGE) from error
    if options.json:
        print_json({"ok": True, "spec": str(target)})
    else:
        print(f"wrote {target}; next: polymath run {target}")
    return ExitCode.OK


VERB = Verb(name="init", help="write a commented spec that runs on a laptop", add_arguments=add_arguments, run=run)
