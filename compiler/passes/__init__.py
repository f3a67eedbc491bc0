"""The passes: one file each, pure, in one ordered tuple."""

from ..compilation import Compilation, Pass
from .check import check
from .emit import emit
from .idle import idle
from .lower import lower
from .parse import parse
from .place import place
from .resolve import resolve
from .roles import roles
from .route import route
from .serve import serve
from .size import size

CHECKS: tuple[Pass, ...] = (parse, resolve, size, check, idle, roles, route, place, serve)  # what `polymath validate` runs
PASSES: tuple[Pass, ...] = (*CHECKS, lower, emit)

__all__ = ["CHECKS", "PASSES", "Compilation"]
