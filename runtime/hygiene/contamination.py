"""Whether training data holds held-out tasks: by hash, by near-duplicate search, and by what is quoted inside longer texts.

Every held-out question is compared with every message that a model is trained on or beside. `exact`: the same words and operators,
case and other punctuation aside. `near`: MinHash finds a similarity of the threshold or more. `quoted`: at least that share of the
question's runs of eight words stands in the conversation, which a comparison of whole texts would miss; shorter questions are not
looked for so.
Memory grows with the held-out tasks, never with the training data.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...specs.model import TrajectorySource
from ..data.near_duplicates import NearDuplicates, shingles
from ..data.trajectories import SourceReport, read_source
from ..worlds.protocol import Message, Task, World

QUOTED_WORDS = 8
EXAMPLES = 5  # kept for each source and kind
SHOWN_CHARACTERS = 160
KINDS = ("exact", "near", "quoted")
_WORD = re.compile(r"\w+")
_WORD_OR_OPERATOR = re.compile(r"\w+|[+*/<>=^%]|(?<!\w)-")


class HeldOut:
    """The held-out questions of a spec's domains, ready to be looked for."""

    def __init__(self, threshold: float | None = 0.8) -> None:
        """`threshold` is the similarity from which texts count as the same; None: only those of the same words do."""
        self.threshold = threshold
        self.questions: dict[str, str] = {}  # by name: `<domain>:<number>`
        self._hashes: dict[str, str] = {}
        self._near = NearDuplicates(threshold=threshold or 1.0)
        self._runs: dict[str, set[int]] = {}
        self._holders: dict[int, list[str]] = {}

    def add(self, name: str, question: str) -> None:
        """Remember one question."""
        self.questions[name] = question
        self._hashes.setdefault(normal_hash(question), name)
        if self.threshold is None:
            return
        self._near.add(name, question)
        if len(_WORD.findall(question)) >= QUOTED_WORDS:
            self._runs[name] = shingles(question, QUOTED_WORDS)
            for run in self._runs[name]:
                self._holders.setdefault(run, []).append(name)

    def add_tasks(self, domain: str, world: World, tasks: Iterable[Task]) -> None:
        """Remember the questions of a domain's tasks."""
        for number, task in enumerate(tasks):
            self.add(f"{domain}:{number}", str(world.start(task).opening()[-1]["content"]))

    def find(self, messages: Iterable[Message]) -> dict[str, str]:
        """The held-out questions that a conversation holds: name to the strongest kind."""
        found: dict[str, str] = {}
        seen: Counter[str] = Counter()
        runs: set[int] = set()
        for text in (str(message.get("content") or "") for message in messages):
            name = self._hashes.get(normal_hash(text))
            if name is not None:
                found[name] = "exact"
            if self.threshold is None:
                continue
            for match in self._near.find(text):
                found.setdefault(match.key, "near")
            runs |= shingles(text, QUOTED_WORDS) if self._holders else set()
        for run in runs:
            seen.update(self._holders.get(run, ()))
        for name, count in seen.items():
            if count >= (self.threshold or 1.0) * len(self._runs[name]):
                found.setdefault(name, "quoted")
        return found


@dataclass(kw_only=True, slots=True)
class SourceContamination:
    """What one training set holds of the held-out tasks."""

    source: str
    rows: int = 0
    contaminated_rows: int = 0
    tasks: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})  # names of the held-out tasks
    examples: list[dict[str, Any]] = field(default_factory=list)

    def look_at(self, row: int, messages: Iterable[Message], heldout: HeldOut) -> None:
        """Count one training row."""
        self.rows += 1
        found = heldout.find(messages)
        self.contaminated_rows += bool(found)
        for name, kind in found.items():
            if len(self.tasks[kind]) < EXAMPLES and name not in self.tasks[kind]:
                shown = heldout.questions[name][:SHOWN_CHARACTERS]
                self.examples.append({"row": row, "task": name, "kind": kind, "question": shown})
            self.tasks[kind].add(name)

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "source": self.source,
            "rows": self.rows,
            "contaminated_rows": self.contaminated_rows,
            "heldout_tasks": {kind: len(names) for kind, names in self.tasks.items()},
            "examples": self.examples,
        }


def look_into(url: str, source: TrajectorySource, heldout: HeldOut) -> SourceContamination:
    """What a training file holds of the held-out tasks.

    Raises:
        UserError: exit code 3; the file is missing, empty or has a bad row.
    """
    found = SourceContamination(source=url)
    for conversation in read_source(url, source, SourceReport(url=url)):
        found.look_at(conversation.row, conversation.messages, heldout)
    return found


def report(heldout: HeldOut, sources: Iterable[SourceContamination]) -> dict[str, Any]:
    """The whole report as JSON."""
    found = [one.as_json() for one in sources]
    domains = Counter(name.partition(":")[0] for name in heldout.questions)
    return {
        "threshold": heldout.threshold,
        "heldout_tasks": dict(sorted(domains.items())),
        "sources": found,
        "clean": not any(one["contaminated_rows"] for one in found),
    }


def summary(found: Mapping[str, Any]) -> str:
    """The report in words, one line a source."""
    lines = []
    for one in found["sources"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in one["heldout_tasks"].items() if count)
        lines.append(f"{one['source']}: {one['contaminated_rows']} of {one['rows']} rows hold held-out tasks ({counts or 'none'})")
        lines += [f"  row {two['row']} {two['kind']} {two['task']}: {two['question']}" for two in one["examples"]]
    return "\n".join(lines) or "there is no training file to compare"


def normal_hash(text: str) -> str:
    """The hash of a text's words and operators, case and other punctuation aside: a sum is another question than a product."""
    return hashlib.sha256(" ".join(_WORD_OR_OPERATOR.findall(text.casefold())).encode("utf-8", "surrogatepass")).hexdigest()
