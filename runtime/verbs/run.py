"""run: lock, compile and launch."""

import argparse

from ...specs.diagnostics import ExitCode, UserError
from ...specs.locations import local_path
from .form import Verb, takes_frozen, takes_run, takes_spec
from .launch import launch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    takes_spec(parser)
    takes_frozen(parser)
    takes_run(parser)


def run(options: argparse.Namespace) -> int:
    """Lock, compile and launch. With --frozen the lock that is there must hold, and is not written anew."""
    from ...compiler.driver import check_spec, compile_spec, lock_spec
    from ..launch.lock import is_running

    checked = check_spec(options.spec, options.set)
    assert checked.spec is not None
    runs = local_path(checked.spec.storage.runs, checked.root)
    assert runs is not None, "a check's job"
    run_dir = options.run_dir or runs / checked.spec.name
    if is_running(run_dir):
        raise UserError(f"{run_dir} is in use by another launch", exit_code=ExitCode.UNFIT, fix=f"see: polymath status {run_dir}")
    options.run_dir = run_dir
    if not options.frozen:
        lock_spec(options.spec, options.set)  # keeps the lengths in tokens that an earlier lock counted
    compile_spec(options.spec, run_dir / "plan", options.set, frozen=options.frozen)
    return launch(run_dir / "plan", options)


VERB = Verb(name="run", help="lock, compile and launch", add_arguments=add_arguments, run=run)
