"""lock: read the data once and write down what it was."""

import argparse

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_spec


def run(options: argparse.Namespace) -> int:
    """Read the data once and write down what it was."""
    from ...compiler.driver import lock_spec
    from ...specs.build import to_json

    locked, path = lock_spec(options.spec, options.set)
    if options.json:
        print_json({"ok": True, "path": str(path), **to_json(locked)})
        return ExitCode.OK
    for source in locked.sources.values():
        rows = f"{source.rows} rows, " if source.rows is not None else ""
        print(f"{source.url}: {rows}{source.bytes} bytes, sha256 {source.sha256[:12]}")
    print(f"wrote {path}")
    return ExitCode.OK


VERB = Verb(name="lock", help="read the data once and write down its hashes", add_arguments=takes_spec, run=run)
