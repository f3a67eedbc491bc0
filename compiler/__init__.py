"""The compiler: a spec becomes a deterministic plan. Never imports torch.

The Python API is `load`, `compile`, `diff` and `estimate`, which do what the verbs do; see `api.py` and docs/api.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import compile, diff, estimate, load

__all__ = ["compile", "diff", "estimate", "load"]


def __getattr__(name: str) -> Any:
    """Import the API when it is asked for: a run needs `compiler.plan` alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)
