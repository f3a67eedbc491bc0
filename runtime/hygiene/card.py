"""A dataset card: what a set of trajectories holds, where it came from, its licences. Markdown with YAML front matter."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..data.trajectories import SCHEMA
from ..knowledge.conversions import read_any
from .scrub import Scrubber

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
UNSTATED = "not stated"


@dataclass(slots=True)
class Contents:
    """Counts over the records of a set."""

    rows: int = 0
    licences: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)
    generators: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)
    rewarded: int = 0
    solved: int = 0
    turns: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    sensitive: Counter[str] = field(default_factory=Counter)  # what the scrubbing rules still find


def contents_of(urls: Iterable[str]) -> Contents:
    """Read the files once.

    Raises:
        UserError: exit code 3; a file cannot be read or has a bad row.
    """
    found = Contents()
    scrubber = Scrubber(counts=found.sensitive)
    for url in urls:
        for record in read_any(url):
            found.rows += 1
            found.licences[str(record.provenance.get("licence") or UNSTATED)] += 1
            found.domains[record.task.domain] += 1
            found.generators[str(record.provenance.get("generator") or UNSTATED)] += 1
            found.statuses[record.status] += 1
            calls = [call["function"]["name"] for one in record.messages for call in one.get("tool_calls") or ()]
            found.tools.update(calls)
            found.rewarded += record.reward is not None
            found.solved += (record.reward or 0.0) >= 1.0
            found.turns.append(sum(one["role"] == "assistant" for one in record.messages))
            found.characters.append(sum(len(str(one.get("content") or "")) for one in record.messages))
            scrubber.scrub(record)
    return found


def write_card(name: str, found: Contents, contamination: Mapping[str, Any] | None) -> str:
    """The card as text. Without a contamination report it says that none was made."""
    size = next((label for bound, label in SIZES if found.rows < bound), "n>1M")
    licences = sorted(one for one in found.licences if one != UNSTATED)
    licence = licences[0].lower() if len(found.licences) == 1 and licences else "other"
    front = {
        "license": licence,
        "size_categories": [size],
        "task_categories": ["text-generation"],
        "tags": ["trajectories", SCHEMA],
    }
    parts = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {_plain(name)}",
        "",
        f"{found.rows} trajectories in JSON Lines. {found.solved} of {found.rewarded} with a verdict solved their task.",
        "",
        "| | half at most | 95 % | longest |",
        "|---|---|---|---|",
        _row("assistant's turns", found.turns),
        _row("characters", found.characters),
        "",
        *_table("Licences", found.licences),
        *_table("Domains", found.domains),
        *_table("Written by", found.generators),
        *_table("Ended", found.statuses),
        *_table("Calls by tool", found.tools),
        "## Secrets and personal data",
        "",
        _sensitive(found.sensitive),
        "",
        "## Held-out tasks",
        "",
        _contamination(contamination),
        "",
    ]
    return "\n".join(parts)


def _sensitive(counts: Mapping[str, int]) -> str:
    if not counts:
        return "The scrubbing rules find nothing. They know forms (addresses, keys, numbers), not names."
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"The scrubbing rules still find: {listed}. `polymath trajectories clean` replaces them."


def _contamination(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "Not compared with any held-out tasks."
    rows = sum(one["contaminated_rows"] for one in found["sources"])
    how = "in the same words" if found["threshold"] is None else f"at a similarity of {found['threshold']:g}"
    return f"{rows} rows hold one of {json.dumps(found['heldout_tasks'])} held-out tasks {how}."


def _row(name: str, values: list[int]) -> str:
    ordered = sorted(values) or [0]
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95)]
    return f"| {name} | {at[0]} | {at[1]} | {ordered[-1]} |"


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return [f"## {title}", "", "| | rows |", "|---|---|", *(f"| {_plain(name)} | {count} |" for name, count in ordered), ""]


def _plain(text: str) -> str:
    """A text as one line of a table, whatever it holds."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")[:120]
