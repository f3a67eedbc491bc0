"""Applies the plan's settings to torchtitan's config tree."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...compiler.plan import Override
from ...specs.diagnostics import ExitCode, UserError


def apply_overrides(config: Any, overrides: Sequence[Override]) -> None:
    """Set each override on the tree of dataclasses, lists and dictionaries; a path that is not there is refused.

    A path such as `optimizer.param_groups.0.optimizer_kwargs.lr` walks fields, positions and keys.
    """
    for override in overrides:
        *parents, last = override.path.split(".")
        node = config
        for part in parents:
            node = _child(node, part, override.path)
        _child(node, last, override.path)
        value = tuple(override.value) if isinstance(override.value, list) else override.value
        if isinstance(node, dict):
            node[last] = value
        else:
            setattr(node, last, value)


def _child(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    if isinstance(node, dict) and part in node:
        return node[part]
    if dataclasses.is_dataclass(node) and part in {field.name for field in dataclasses.fields(node)}:
        return getattr(node, part)
    raise UserError(
        f"the plan sets `{path}`, which this torchtitan does not have",
        exit_code=ExitCode.STALE,
        fix="compile the spec again with the installed version",
    )
