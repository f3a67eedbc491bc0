"""How long the rows of a file are, as quantiles, and what the limits of a spec would cut off of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..specs.build import Path, Problem
from ..specs.model import Sft, Spec
from .compilation import mistake
from .stages import stages

# What is counted of a row. Characters and turns need no tokenizer.
TOKEN_LENGTHS = ("tokens", "response_tokens")  # the whole row; the longest turn that the model would write


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """A length over all rows: 5 %, half, 95 % and 99 % of them are at most this."""

    p05: int
    p50: int
    p95: int
    p99: int
    max: int


def quantiles(values: Sequence[int]) -> Quantiles:
    """The quantiles of at least one value, each a value that occurs."""
    ordered = sorted(values)

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Quantiles(p05=at(0.05), p50=at(0.5), p95=at(0.95), p99=at(0.99), max=ordered[-1])


def row_lengths(row: Mapping[str, Any]) -> dict[str, int]:
    """`characters` of a row's texts, and the `turns` that an assistant takes in it."""
    messages = row.get("messages", row.get("traj"))
    if not isinstance(messages, list):
        return {"characters": len(str(row.get("question", ""))) + len(str(row.get("answer", ""))), "turns": 1}
    dicts = [cast(dict[str, Any], one) for one in cast(list[Any], messages) if isinstance(one, dict)]
    characters = sum(len(text) for one in dicts for text in [one.get("content")] if isinstance(text, str))
    calls = sum(len(str(one["tool_calls"])) for one in dicts if one.get("tool_calls"))
    return {"characters": characters + calls, "turns": sum(one.get("role") == "assistant" for one in dicts)}


def too_long(spec: Spec, lengths: Mapping[str, Mapping[str, Quantiles]]) -> Iterator[Problem]:
    """Limits that would cut off most of what the data shows. `lengths` is by source key and by what is counted."""
    for name, domain in spec.domains.items():
        found = _of_domain(lengths, name, None, spec)
        for field, counted in (("turns", "turns"), ("response_tokens", "response_tokens"), ("context_tokens", "tokens")):
            limit = getattr(domain.limits, field) if domain.limits is not None else None
            if limit is not None:
                yield from _cut_off(("domains", name, "limits", field), limit, name, counted, found)
    for stage in stages(spec):
        if isinstance(stage.block, Sft):
            for name in stage.domains:
                found = _of_domain(lengths, name, stage.block.trajectories, spec)
                path = (*stage.path, "sequence_tokens")
                yield from _cut_off(path, stage.block.sequence_tokens, name, "tokens", found)


def _of_domain(
    lengths: Mapping[str, Mapping[str, Quantiles]], name: str, trajectories: str | None, spec: Spec
) -> list[Mapping[str, Quantiles]]:
    """The lengths of a domain's sources, of one name only or of all."""
    sources = enumerate(spec.domains[name].trajectories)
    keys = [f"source.{name}.{number}" for number, source in sources if trajectories in (None, source.name)]
    return [lengths[key] for key in keys if key in lengths]


def _cut_off(path: Path, limit: int, domain: str, counted: str, found: Sequence[Mapping[str, Quantiles]]) -> Iterator[Problem]:
    known = [one[counted] for one in found if counted in one]
    if known and all(one.p50 > limit for one in known):
        median, most = max(one.p50 for one in known), max(one.p95 for one in known)
        unit = "turns" if counted == "turns" else "tokens"
        detail = f"{limit} {unit}, but half of the rows of domain `{domain}` have more than {median - 1}"
        yield mistake("E0321", path, detail, f"{most} would hold 95 % of them")
