"""Instruction following: several constraints on one text, every one of them checked by rule.

A task is a topic and constraints drawn from kinds that do not contradict each other. The oracle writes a text that keeps them all.
What the text says of the topic is a constraint too, so that no stock answer passes.
Source: Agents-A1 report (arXiv 2606.30616), instruction-following data, where constraints of this kind are put on users' prompts.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....specs.generators import ConstraintsSettings
from ..graph import GraphStore
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator

TOPICS = [
    "a harbour at night",
    "the repair of a bell",
    "how to store apples",
    "a lost umbrella",
    "the first frost",
    "a small library",
    "learning to row",
    "a market day",
    "the care of bees",
    "an old map",
    "walking uphill",
    "baking bread",
    "a long bridge",
    "the sound of rain",
    "a garden wall",
    "night trains",
]
_WORDS = [
    "lantern",
    "copper",
    "window",
    "river",
    "ladder",
    "basket",
    "button",
    "feather",
    "kettle",
    "marble",
    "needle",
    "orchard",
    "pepper",
    "ribbon",
    "saddle",
    "thimble",
]
_FILL = [
    "and",
    "then",
    "it",
    "was",
    "calm",
    "while",
    "people",
    "stood",
    "near",
    "with",
    "time",
    "to",
    "look",
    "at",
    "what",
    "lay",
    "there",
    "before",
    "they",
    "went",
    "on",
    "again",
]
_ENDINGS = ("That is all.", "So it ends.", "Nothing more was said.", "And that was that.")
_STARTS = ("Listen.", "To begin:", "In short:", "Once more:")


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of constraint: how it is said, and how a text is checked."""

    says: str
    holds: Callable[[str, Any], bool]


def words(text: str) -> list[str]:
    """The words of a text, lower case."""
    return re.findall(r"[\w']+", text.lower())


RULES: Mapping[str, Rule] = {
    "topic": Rule("Write about {}.", lambda text, topic: set(_content(topic)) <= set(words(text))),
    "at_least": Rule("Use at least {} words.", lambda text, count: len(words(text)) >= count),
    "at_most": Rule("Use at most {} words.", lambda text, count: len(words(text)) <= count),
    "paragraphs": Rule(
        "Write exactly {} paragraphs, with an empty line between them.",
        lambda text, count: len([one for one in re.split(r"\n\s*\n", text.strip()) if one.strip()]) == count,
    ),
    "include": Rule("Use each of these words: {}.", lambda text, wanted: set(wanted.split(", ")) <= set(words(text))),
    "exclude": Rule("Do not use the word {}.", lambda text, word: word not in words(text)),
    "times": Rule("Use the word {} times.", lambda text, value: words(text).count(value.split()[0]) == int(value.split()[-1])),
    "ending": Rule("End with exactly: {}", lambda text, ending: text.strip().endswith(ending)),
    "start": Rule("Begin with exactly: {}", lambda text, start: text.strip().startswith(start)),
    "lower": Rule("Use no capital letters.", lambda text, _: text == text.lower()),
    "no_comma": Rule("Use no comma.", lambda text, _: "," not in text),
    "bullets": Rule("Include exactly {} lines that begin with '- '.", lambda text, count: _bullets(text) == count),
    "title": Rule(
        "Put a title in double angular brackets, such as <<title>>.", lambda text, _: bool(re.search(r"<<[^<>\n]+>>", text))
    ),
}
APART = ({"lower", "ending"}, {"lower", "start"}, {"start", "bullets"})  # kinds that are not asked for together


def _content(topic: str) -> list[str]:
    return [word for word in words(topic) if word not in ("a", "an", "the", "of", "how", "to", "at", "and")]


def _bullets(text: str) -> int:
    return sum(line.startswith("- ") for line in text.splitlines())


class Constraints(TaskGenerator):
    """Write a text that keeps every constraint."""

    name = "constraints"
    verifiers: Mapping[str, str] = {"outcome": "the text keeps every constraint"}
    fewest_steps = 0
    duplicate_threshold = 1.01  # tasks share the words of their constraints

    def __init__(self, store: GraphStore, settings: ConstraintsSettings) -> None:
        super().__init__(store, settings)
        self._nodes = {node.name: node.id for node in store.nodes("constraint")}

    @classmethod
    def furnish(cls, store: GraphStore, settings: ConstraintsSettings) -> None:
        for name, rule in RULES.items():
            store.add("constraint", name, rule.says)
        store.commit()

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        region = region or rng
        kinds = region.sample([kind for kind in RULES if kind != "topic"], region.randint(self.settings.fewest, self.settings.most))
        if any(apart <= set(kinds) for apart in APART):
            return None
        wanted = rng.sample(_WORDS, 4)
        least = rng.randint(20, 60)
        values: dict[str, Any] = {
            "topic": rng.choice(TOPICS),
            "at_least": least,
            "at_most": least + rng.randint(60, 90),
            "paragraphs": rng.randint(2, 4),
            "include": ", ".join(wanted[:2]),
            "exclude": wanted[2],
            "times": f"{wanted[3]} exactly {rng.randint(2, 4)}",
            "ending": rng.choice(_ENDINGS),
            "start": rng.choice(_STARTS),
            "bullets": rng.randint(2, 4),
        }
        rules = {kind: values.get(kind, True) for kind in ("topic", *kinds)}
        instruction = " ".join(RULES[kind].says.format(value) for kind, value in rules.items())
        target = _write(rules, rng)
        task = TaskRecord(
            instruction=instruction,
            domain=self.name,
            key=instruction,
            target=target,
            evidence=tuple(self._nodes[kind] for kind in rules),
            verifiers=("outcome",),
            payload={"rules": rules},
        )
        # Some constraints are met by the words of the instruction itself, which then asks for nothing.
        return None if self.one_lookup(task) else task

    def serve(self, task: TaskRecord, state: Any, call: Any) -> Shown:
        raise AssertionError("there is no tool")

    def accepts(self, task: TaskRecord, answer: str, state: Any = None) -> bool:
        return all(RULES[kind].holds(answer, value) for kind, value in task.payload["rules"].items())

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        """Any text that keeps the constraints will do: the target stands for all of them. None where rules contradict each other,
        and more than one where the instruction does not say a rule that decides."""
        said = all(RULES[kind].says.format(value) in task.instruction for kind, value in task.payload["rules"].items())
        if not self.accepts(task, task.target or ""):
            return frozenset()
        return frozenset({task.target or ""} if said else {task.target or "", "any text that breaks what is not said"})

    def one_lookup(self, task: TaskRecord) -> str | None:
        return "the instruction itself keeps every constraint" if self.accepts(task, task.instruction) else None

    def shortcut(self, task: TaskRecord) -> str | None:
        stock = "\n\n".join(f"- <<note>> {' '.join(_FILL)}" for _ in range(2))
        if self.accepts(task, stock):
            return "a stock text keeps every constraint"
        return "the instruction holds the answer" if (task.target or "") in task.instruction else None

    def cited(self, task: TaskRecord, answer: str) -> tuple[str, ...]:
        """A constraint was attended to where the answer keeps it."""
        return tuple(self._nodes[kind] for kind, value in task.payload["rules"].items() if RULES[kind].holds(answer, value))

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        return _write(task.payload["rules"], rng)
        yield


def _write(rules: Mapping[str, Any], rng: random.Random) -> str:
    """A text that keeps the rules."""
    must = _content(rules["topic"]) + (rules["include"].split(", ") if "include" in rules else [])
    if "times" in rules:
        word, _, count = rules["times"].split()
        must += [word] * int(count)
    count = max(rules.get("at_least", 25) + 4, len(must) + 8)
    found = [*must, *rng.choices(_FILL, k=count - len(must))]
    paragraphs = rules.get("paragraphs", 1)
    size = -(-len(found) // paragraphs)
    parts = [" ".join(found[start : start + size]) + "." for start in range(0, len(found), size)]
    while len(parts) < paragraphs:
        parts.append("and so on.")
    parts = [part if "lower" in rules else part[0].upper() + part[1:] for part in parts]
    if "title" in rules:
        parts[0] += " <<a note>>"
    if "bullets" in rules:
        parts[0] += "\n" + "\n".join(["- so it was"] * rules["bullets"])
    if "start" in rules:
        parts[0] = f"{rules['start']} {parts[0]}"
    if "ending" in rules:
        parts[-1] += f"\n{rules['ending']}"
    return "\n\n".join(parts)
