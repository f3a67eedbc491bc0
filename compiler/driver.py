"""Runs the passes: from a spec's path to what is wrong with it, or to its plan."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..specs.diagnostics import SpecInvalid, UserError
from ..specs.yaml import Document
from .compilation import Compilation, Pass
from .drift import refuse_drift, unproved
from .lengths import too_long
from .lock import Lock, TokenCounter, lock_path, locked_digests, make_lock, read_lock, write_lock
from .passes import CHECKS, PASSES
from .plan import Plan, read_plan
from .provenance import Origins, find_origins, read_origins
from .store import write_plan


def check_spec(path: Path, overrides: Sequence[str] = (), written: Document | None = None) -> Compilation:
    """Everything that can be said of a spec without reading its data.

    Raises:
        SpecInvalid: carries every mistake.
    """
    return _run(CHECKS, Compilation(path=str(path), overrides=tuple(overrides), written=written))


def lock_spec(path: Path, overrides: Sequence[str] = (), count_tokens: TokenCounter | None = None) -> tuple[Lock, Path]:
    """Check a spec, read its data once and write the lock beside it; returns both.

    Raises:
        SpecInvalid: the spec is wrong, a row is, or a limit would cut off most rows; nothing is written then.
    """
    checked = check_spec(path, overrides)
    try:
        earlier = read_lock(lock_path(path))
    except UserError:  # it is written anew
        earlier = None
    lock = make_lock(checked, earlier, count_tokens)
    _run((), _with_lengths(checked, lock))
    write_lock(lock, lock_path(path))
    return lock, lock_path(path)


def compile_in_memory(
    path: Path, overrides: Sequence[str] = (), *, frozen: bool = False, written: Document | None = None
) -> Compilation:
    """Compile a spec and write nothing. Its inputs get their hashes from the lock, where there is one.

    `written` is what the spec says where that is not the file itself: a row of a sweep.

    Raises:
        SpecInvalid: the spec is wrong, or by the lock a limit would cut off most rows.
        UserError: an input is not what was locked; with `frozen`, anything is not, or there is no lock.
    """
    checked = check_spec(path, overrides, written)
    assert checked.spec is not None
    lock = read_lock(lock_path(path))
    if frozen:
        refuse_drift(checked, lock)
    digests = locked_digests(lock, checked.spec, checked.root, str(path))
    checked = _run((), _with_lengths(checked, lock))
    return _run(PASSES[len(CHECKS) :], replace(checked, digests=digests, unproved=tuple(unproved(checked, lock))))


def compile_spec(path: Path, folder: Path, overrides: Sequence[str] = (), *, frozen: bool = False) -> Plan:
    """Compile a spec into a plan directory."""
    plan = publish(compile_in_memory(path, overrides, frozen=frozen), folder).plan
    assert plan is not None
    return plan


def publish(done: Compilation, folder: Path) -> Compilation:
    """Write the plan of a compilation into a folder."""
    assert done.plan is not None and done.sources is not None
    write_plan(done.plan, done.sources, folder, find_origins(done))
    return done


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


def _with_lengths(compilation: Compilation, lock: Lock | None) -> Compilation:
    if lock is None or compilation.spec is None:
        return compilation
    lengths = {key: source.lengths for key, source in lock.sources.items()}
    return compilation.with_mistakes(*too_long(compilation.spec, lengths))


def _run(passes: Sequence[Pass], compilation: Compilation) -> Compilation:
    for one in passes:
        compilation = one(compilation)
    if compilation.diagnostics:
        raise SpecInvalid(compilation.diagnostics, compilation.texts)
    return compilation
