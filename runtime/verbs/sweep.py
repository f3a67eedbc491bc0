"""sweep: run variants of a spec over seeds."""

import argparse
import contextlib
import sys
from pathlib import Path

from ...specs.diagnostics import ExitCode, UserError
from .form import Verb, print_json, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", type=Path, help="the sweep file")
    parser.add_argument(
        "--jobs", type=whole_number(1), default=1, metavar="N", help="launches at once, of one seed each (default: 1)"
    )


def run(options: argparse.Namespace) -> int:
    """Run variants of a spec over seeds, going on where an earlier sweep stopped; write one table and one plot."""
    from ...compiler.driver import publish
    from ...compiler.sweep import compile_sweep
    from ..sweep.parts import SweepParts, SweepRun, plan_folder_of, run_dir_of
    from ..sweep.run import run_sweep

    compiled = compile_sweep(options.sweep)
    sweep, folder = compiled.sweep, compiled.folder
    if options.jobs > 1 and any(variant.plan.cluster.accelerator != "cpu" for variant in compiled.variants):
        raise UserError(
            f"--jobs {options.jobs}: launches side by side would take the same GPUs of this machine",
            exit_code=ExitCode.USAGE,
            fix="leave --jobs out: every launch has all devices of its plan",
        )
    runs: list[SweepRun] = []
    for variant in compiled.variants:
        run_dir = run_dir_of(folder, variant.at, variant.seed)
        place = plan_folder_of(run_dir, variant.row)
        publish(variant.done, place)
        subject = sweep.rows[variant.row].subject
        runs.append(
            SweepRun(at=variant.at, row=variant.row, seed=variant.seed, subject=subject, plan_folder=place, run_dir=run_dir)
        )
    axis = None if sweep.along is None else sweep.along.title
    titles = {name: row.title or name for name, row in sweep.rows.items()}
    parts = SweepParts(name=sweep.name, folder=folder, axis=axis, titles=titles, runs=tuple(runs))
    again = f"polymath sweep {options.sweep}" + (f" --jobs {options.jobs}" if options.jobs > 1 else "")
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        code = run_sweep(parts, at_once=options.jobs, again=again, say=_say)
    if options.json:
        print_json({"ok": code == ExitCode.OK, "exit_code": int(code), "sweep": str(folder)})
    return code


def _say(text: str) -> None:
    print(text, flush=True)  # whoever follows a long sweep in a file sees its lines as they come


VERB = Verb(name="sweep", help="run variants of a spec over seeds", add_arguments=add_arguments, run=run)
