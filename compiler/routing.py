"""The proof of routing: a table in which every domain stands once, with its one teacher and what that teacher will score.

A domain without a teacher (E0401), with two (E0402) and a teacher that nothing uses (E0403) never get this far.
"""

from collections.abc import Mapping, Sequence

from ..specs.model import Spec
from .plan import RoutedDomain


def routing_table(spec: Spec, owners: Mapping[str, str]) -> tuple[RoutedDomain, ...]:
    """One row per domain, by name; nothing where no stage is routed."""
    distill = spec.student.distill
    if distill is None:
        return ()
    rows: list[RoutedDomain] = []
    for name in sorted(spec.domains):
        domain = spec.domains[name]
        assert domain.prompts is not None and domain.limits is not None
        drawn = distill.steps * distill.prompts_per_step.per_domain
        tokens = drawn * domain.limits.context_tokens
        rows.append(RoutedDomain(domain=name, teacher=owners[name], tasks=domain.prompts.train, prompts=drawn, tokens=tokens))
    return tuple(rows)


def show_table(rows: Sequence[RoutedDomain]) -> str:
    """The table for people."""
    heading = ("domain", "teacher", "tasks", "prompts", "tokens at most")
    cells = [(row.domain, row.teacher, f"{row.tasks:,}", f"{row.prompts:,}", f"{row.tokens:,}") for row in rows]
    total = ("all", "", f"{sum(row.tasks for row in rows):,}", f"{sum(row.prompts for row in rows):,}")
    cells = [heading, *cells, (*total, f"{sum(row.tokens for row in rows):,}")]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
