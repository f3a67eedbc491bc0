"""The Python API: what `validate`, `compile`, `diff` and `estimate` do, without the command line.

A mistake raises `SpecInvalid`, whose `diagnostics` hold code, place, detail and fix of each; its text is the command line's.
Whatever else is the user's to mend raises `UserError` with an `exit_code`.
"""

from collections.abc import Sequence
from pathlib import Path

from ..specs.model import Spec
from .differences import Difference, compare
from .driver import check_spec, compile_in_memory, plan_of, publish
from .estimates.spec import Estimate, estimate_spec
from .plan import Plan

Location = str | Path
__all__ = ["Difference", "Estimate", "compile", "diff", "estimate", "load"]


def load(path: Location, overrides: Sequence[str] = ()) -> Spec:
    """A checked spec, with its defaults, what it extends, and `path=value` overrides.

    Raises:
        SpecInvalid: carries every mistake.
        UserError: the file cannot be read, or an override is not `path=value`.
    """
    spec = check_spec(Path(path), overrides).spec
    assert spec is not None
    return spec


def compile(path: Location, folder: Location | None = None, overrides: Sequence[str] = (), *, frozen: bool = False) -> Plan:
    """The plan of a spec, written to a folder if one is given.

    Raises:
        SpecInvalid: carries every mistake.
        UserError: an input is not what was locked; with `frozen`, anything is not; or the folder is not a plan's.
    """
    done = compile_in_memory(Path(path), overrides, frozen=frozen)
    if folder is not None:
        publish(done, Path(folder))
    assert done.plan is not None
    return done.plan


def diff(before: Location, after: Location) -> Difference:
    """What differs between two specs or plan folders; false where nothing does.

    Raises:
        SpecInvalid, UserError: as for `compile`; 4 where a plan was edited.
    """
    return compare(*plan_of(Path(before)), *plan_of(Path(after)))


def estimate(path: Location, overrides: Sequence[str] = ()) -> Estimate:
    """Parameters, memory, FLOPs and time of every job of a spec, each with its formula.

    Raises:
        SpecInvalid: carries every mistake.
        UserError: nothing says how large the model is.
    """
    return estimate_spec(Path(path), overrides)
