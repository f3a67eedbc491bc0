"""The `polymath` command.

Every verb ends with one of `ExitCode`. A mistake of the user's is one message; only a bug of ours says so, and shows its traceback
where POLYMATH_DEBUG=1. Imports are inside the verbs, so that `validate` is quick and never loads torch.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from ..specs.diagnostics import ExitCode, SpecInvalid, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    debug = os.environ.get("POLYMATH_DEBUG") == "1"
    options = _parser().parse_args(arguments)
    try:
        return int(options.verb(options))
    except SpecInvalid as error:
        if getattr(options, "json", False):
            _print_json({"ok": False, "diagnostics": [_diagnostic_json(one) for one in error.diagnostics]})
        else:
            print(error.render(), file=sys.stderr)
        return int(error.exit_code)
    except UserError as error:
        if getattr(options, "json", False):
            _print_json({"ok": False, "error": error.message, "fix": error.fix, "exit_code": int(error.exit_code)})
        else:
            print(error.render(), file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:  # the last line of defence: whatever it is, it is not the user's mistake
        if debug:
            raise
        print(f"this is a bug in Polymath: {type(error).__name__}: {error}", file=sys.stderr)
        print("  = POLYMATH_DEBUG=1 shows where; please report it with that output", file=sys.stderr)
        return int(ExitCode.BUG)


def init(options: argparse.Namespace) -> int:
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
    print(f"wrote {target}; next: polymath run {target}")
    return ExitCode.OK


def validate(options: argparse.Namespace) -> int:
    """Say everything that is wrong with a spec."""
    from ..compiler.driver import check_spec

    spec = check_spec(options.spec, options.set).spec
    assert spec is not None
    if options.json:
        _print_json({"ok": True, "diagnostics": []})
    else:
        teachers = f"{len(spec.teachers)} teacher{'' if len(spec.teachers) == 1 else 's'}"
        print(f"{options.spec} is valid: {len(spec.domains)} domains, {teachers}")
    return ExitCode.OK


def lock(options: argparse.Namespace) -> int:
    """Read the data once and write down what it was."""
    from ..compiler.driver import lock_spec
    from ..specs.build import to_json

    locked, path = lock_spec(options.spec, options.set)
    if options.json:
        _print_json({"ok": True, "path": str(path), **to_json(locked)})
        return ExitCode.OK
    for source in locked.sources.values():
        rows = f"{source.rows} rows, " if source.rows is not None else ""
        print(f"{source.url}: {rows}{source.bytes} bytes, sha256 {source.sha256[:12]}")
    print(f"wrote {path}")
    return ExitCode.OK


def compile_plan(options: argparse.Namespace) -> int:
    """Compile a spec into a plan."""
    from ..compiler.driver import compile_spec
    from ..compiler.lock import lock_path

    plan = compile_spec(options.spec, options.output, options.set)
    sources = {one.source for job in plan.jobs for one in job.inputs.values() if one.source}
    unproved = [] if lock_path(options.spec).is_file() else sorted(sources)
    if options.json:
        summary = {"recipe_digest": plan.recipe_digest, "exact_digest": plan.exact_digest, "not_proved": unproved}
        _print_json({"ok": True, "plan": str(options.output), "jobs": [job.id for job in plan.jobs], **summary})
        return ExitCode.OK
    print(f"wrote {options.output}: {len(plan.jobs)} jobs in {len(plan.processes)} processes, recipe {plan.recipe_digest[:12]}")
    if unproved:
        print(f"not proved without a lock: that every row of {', '.join(unproved)} can be read")
        print(f"  = polymath lock {options.spec}")
    return ExitCode.OK


def launch(options: argparse.Namespace) -> int:
    """Run a plan, going on where it stopped."""
    from .launch.run import launch_plan

    return launch_plan(options.plan, run_dir=options.run_dir, port=options.port)


def run(options: argparse.Namespace) -> int:
    """Lock, compile and launch."""
    from ..compiler.driver import check_spec, compile_spec, lock_spec
    from .launch.lock import is_running
    from .launch.run import launch_plan

    checked = check_spec(options.spec, options.set)
    assert checked.spec is not None
    run_dir = options.run_dir or checked.root / checked.spec.storage.runs / checked.spec.name
    if is_running(run_dir):
        raise UserError(f"{run_dir} is in use by another launch", exit_code=ExitCode.UNFIT, fix=f"see: polymath status {run_dir}")
    lock_spec(options.spec, options.set)
    compile_spec(options.spec, run_dir / "plan", options.set)
    return launch_plan(run_dir / "plan", run_dir=run_dir, port=options.port)


def status(options: argparse.Namespace) -> int:
    """Say how far a run is."""
    from .launch.status import print_status

    print_status(options.folder, json=options.json)
    return ExitCode.OK


def report(options: argparse.Namespace) -> int:
    """Write the report of a run anew."""
    from .report.page import write_report

    print(write_report(options.folder))
    return ExitCode.OK


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of specs, for editors."""
    from ..specs.schema import recipe_schema

    _print_json(recipe_schema())
    return ExitCode.OK


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(int(ExitCode.USAGE))


def _parser() -> argparse.ArgumentParser:
    width = shutil.get_terminal_size().columns
    parser = _Parser(
        prog="polymath",
        description="Many teachers, one student: one YAML spec trains an agentic mixture-of-experts model.",
        epilog="exit codes: 0 fine, 1 a bug of ours, 2 differences, 3 spec invalid, 4 plan stale or edited, 5 machine unfit, "
        "6 run failed, 7 interrupted and resumable, 64 usage",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=min(width, 110)),
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Any, help_text: str, *, json_output: bool = False) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help_text, description=function.__doc__)
        added.set_defaults(verb=function)
        if json_output:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    def takes_spec(added: argparse.ArgumentParser) -> None:
        added.add_argument("spec", type=Path, help="the YAML spec")
        added.add_argument(
            "--set", action="append", default=[], metavar="PATH=VALUE", help="replace one value, such as student.sft.epochs=2"
        )

    def takes_run(added: argparse.ArgumentParser) -> None:
        added.add_argument("--run-dir", type=Path, help="folder of the run (default: <storage.runs>/<name>)")
        added.add_argument("--port", type=int, help="port of torchrun's rendezvous (default: a free one)")

    verb("init", init, "write a commented spec that runs on a laptop").add_argument("spec", type=Path)
    takes_spec(verb("validate", validate, "say everything that is wrong with a spec", json_output=True))
    takes_spec(verb("lock", lock, "read the data once and write down its hashes", json_output=True))
    compiling = verb("compile", compile_plan, "compile a spec into a plan", json_output=True)
    takes_spec(compiling)
    compiling.add_argument("-o", "--output", type=Path, default=Path("plan"), help="folder of the plan (default: plan)")
    launching = verb("launch", launch, "run a plan, going on where it stopped")
    launching.add_argument("plan", type=Path, help="folder of the plan")
    takes_run(launching)
    running = verb("run", run, "lock, compile and launch")
    takes_spec(running)
    takes_run(running)
    asking = verb("status", status, "say how far a run is", json_output=True)
    asking.add_argument("folder", type=Path, help="folder of a run or a plan")
    verb("schema", schema, "print the JSON Schema of specs")
    verb("report", report, "write the report of a run anew").add_argument("folder", type=Path, help="folder of a run")
    return parser


def _diagnostic_json(diagnostic: Any) -> dict[str, Any]:
    span = diagnostic.span
    place = {"file": span.file, "line": span.line, "column": span.column, "end_column": span.end_column}
    return {
        "code": diagnostic.code,
        "summary": diagnostic.summary,
        "detail": diagnostic.detail,
        "fix": diagnostic.fix,
        **place,
    }


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    raise SystemExit(main())
