"""What a verb is, and what verbs share: their arguments and their JSON.

A new verb is a file `runtime/verbs/<verb>.py` with a `VERB`, and its name in `runtime/verbs/__init__.py`; `cli.py` adds `--json` to
every one. Imports of the compiler and of slow packages stay inside `run`, so that `validate` is quick.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...specs.locations import is_url


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """For verbs that take none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verb:
    """One verb. `run` returns an `ExitCode`; with `options.json` it prints one JSON document and nothing else on stdout."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] = no_arguments


def takes_spec(parser: argparse.ArgumentParser) -> None:
    """A spec and its overrides: `options.spec`, `options.set`."""
    parser.add_argument("spec", type=Path, help="the YAML spec")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="replace one value, such as student.sft.epochs=2"
    )


def takes_frozen(parser: argparse.ArgumentParser) -> None:
    """Whether the lock must hold: `options.frozen`."""
    parser.add_argument(
        "--frozen", action="store_true", help="refuse (exit 4) where data, weights, spec or versions are not what was locked"
    )


def takes_run(parser: argparse.ArgumentParser) -> None:
    """Where and how a launch runs: `options.run_dir`, `options.port`."""
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: <storage.runs>/<name>)")
    parser.add_argument("--port", type=int, help="port of torchrun's rendezvous (default: a free one)")


def local_file(text: str) -> Path:
    """The type of an argument that is a path on this machine, never a URL."""
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is a URL; name a file on this machine")
    return Path(text)


def whole_number(least: int) -> Callable[[str], int]:
    """The type of a flag that counts something: no less than `least`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"at least {least}")
        return number

    return read


def number(most: float = math.inf, *, above_zero: bool = False) -> Callable[[str], float]:
    """The type of a flag that measures something: finite, from 0 to `most`, and not 0 where it must be above that."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not (math.isfinite(value) and 0 <= value <= most and (value or not above_zero)):
            raise argparse.ArgumentTypeError(
                f"{'above' if above_zero else 'at least'} 0" + (f", at most {most:g}" if most < math.inf else "")
            )
        return value

    return read


def print_json(value: Any) -> None:
    """The answer of a verb under `--json`."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
