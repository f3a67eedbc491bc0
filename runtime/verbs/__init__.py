"""The verbs of the command line, one file each, in the order of `polymath --help`."""

from importlib import import_module

from .form import Verb

NAMES = (
    "init",
    "validate",
    "explain",
    "fmt",
    "lock",
    "compile",
    "estimate",
    "diff",
    "graph",
    "launch",
    "run",
    "sweep",
    "status",
    "report",
    "trajectories",
    "graph-import",
    "graph-query",
    "self-play",
    "doctor",
    "schema",
    "completion",
)


def all_verbs() -> tuple[Verb, ...]:
    """Every verb."""
    return tuple(import_module(f".{name.replace('-', '_')}", __name__).VERB for name in NAMES)
