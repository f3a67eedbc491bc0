"""Runs the passes: from a spec's path to what is wrong with it, or to its plan."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..specs.diagnostics import SpecInvalid
from .compilation import Compilation, Pass
from .lock import Lock, lock_path, locked_digests, make_lock, read_lock, write_lock
from .passes import CHECKS, PASSES
from .plan import Plan, read_plan
from .provenance import Origins, find_origins, read_origins
from .store import write_plan


def check_spec(path: Path, overrides: Sequence[str] = ()) -> Compilation:
    """Everything that can be said of a spec without reading its data.

    Raises:
        SpecInvalid: carries every mistake.
    """
    return _run(CHECKS, Compilation(path=str(path), overrides=tuple(overrides)))


def lock_spec(path: Path, overrides: Sequence[str] = ()) -> tuple[Lock, Path]:
    """Check a spec, read its data once and write the lock beside it; returns both."""
    lock = make_lock(check_spec(path, overrides))
    write_lock(lock, lock_path(path))
    return lock, lock_path(path)


def compile_in_memory(path: Path, overrides: Sequence[str] = ()) -> Compilation:
    """Compile a spec and write nothing. Its inputs get their hashes from the lock, where there is one."""
    checked = check_spec(path, overrides)
    assert checked.spec is not None
    digests = locked_digests(read_lock(lock_path(path)), checked.spec, checked.root, str(path))
    return _run(PASSES[len(CHECKS) :], replace(checked, digests=digests))


def compile_spec(path: Path, folder: Path, overrides: Sequence[str] = ()) -> Plan:
    """Compile a spec into a plan directory."""
    done = compile_in_memory(path, overrides)
    assert done.plan is not None and done.sources is not None
    write_plan(done.plan, done.sources, folder, find_origins(done))
    return done.plan


def plan_of(path: Path, overrides: Sequence[str] = ()) -> tuple[Plan, Origins]:
    """The plan that a folder holds, or that a spec would compile to; with the origins of its values.

    Raises:
        UserError: there is no plan or no spec, or the plan was edited.
        SpecInvalid: the spec is wrong.
    """
    if path.is_dir():
        return read_plan(path), read_origins(path)
    done = compile_in_memory(path, overrides)
    assert done.plan is not None
    return done.plan, find_origins(done)


def _run(passes: Sequence[Pass], compilation: Compilation) -> Compilation:
    for one in passes:
        compilation = one(compilation)
    if compilation.diagnostics:
        raise SpecInvalid(compilation.diagnostics, compilation.texts)
    return compilation
