"""The `polymath` command: reads the command line and ends with one of `ExitCode`. The verbs are in `verbs/`.

A mistake of the user's is one message; only a bug of ours says so, and shows its traceback where POLYMATH_DEBUG=1.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..specs.diagnostics import ExitCode, SpecInvalid, UserError
from ..specs.locations import without_secrets
from .verbs import all_verbs
from .verbs.form import print_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    try:
        options = make_parser().parse_args(arguments)
        return _run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except SpecInvalid as error:
        if options.json:
            print_json({"ok": False, "diagnostics": [_diagnostic_json(one) for one in error.diagnostics]})
        else:
            print(error.render(), file=sys.stderr)
        return int(error.exit_code)
    except UserError as error:
        return _refused(options, error)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:  # the last line of defence: whatever it is, it is not the user's mistake
        if os.environ.get("POLYMATH_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.filename is not None:
            return _refused(options, _unusable(error))
        print(f"this is a bug in Polymath: {type(error).__name__}: {error}", file=sys.stderr)
        print("  = POLYMATH_DEBUG=1 shows where; please report it with that output", file=sys.stderr)
        return int(ExitCode.BUG)


def _refused(options: argparse.Namespace, error: UserError) -> int:
    if options.json:
        print_json({"ok": False, "error": without_secrets(error.message), "fix": error.fix, "exit_code": int(error.exit_code)})
    else:
        print(error.render(), file=sys.stderr)
    return int(error.exit_code)


def _unusable(error: OSError) -> UserError:
    """What the system would not let us do with a file; of one that is only on its way, its folder is named."""
    from .files import STAGING_PREFIX

    path = Path(os.fsdecode(error.filename))
    place = path.parent if path.name.startswith(STAGING_PREFIX) else path
    fix = "the folder must exist, and be one that you may write" if place != path else "look at the path, and at who may read it"
    return UserError(f"{place} cannot be used: {error.strerror}", exit_code=ExitCode.UNFIT, fix=fix)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(int(ExitCode.USAGE))


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    width = shutil.get_terminal_size().columns
    parser = _Parser(
        prog="polymath",
        description="Many teachers, one student: one YAML spec trains an agentic mixture-of-experts model.",
        epilog="exit codes: 0 fine, 1 a bug of ours, 2 differences, 3 spec invalid, 4 plan stale or edited, 5 machine unfit, "
        "6 run failed, 7 interrupted and resumable, 64 usage",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=min(width, 110)),
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in all_verbs():
        added = verbs.add_parser(verb.name, help=verb.help, description=verb.run.__doc__)
        added.set_defaults(run=verb.run)
        verb.add_arguments(added)
        added.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _diagnostic_json(diagnostic: Any) -> dict[str, Any]:
    span = diagnostic.span
    place = {"file": without_secrets(span.file), "line": span.line, "column": span.column, "end_column": span.end_column}
    return {
        "code": diagnostic.code,
        "summary": diagnostic.summary,
        "detail": without_secrets(diagnostic.detail),
        "fix": diagnostic.fix,
        **place,
    }


if __name__ == "__main__":
    raise SystemExit(main())
