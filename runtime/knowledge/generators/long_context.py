"""Long context: multiple-choice questions over many documents, where a local rule decides which document counts.

Records of one kind stand in documents among distractors: older versions, drafts, records of others. One document holds a rule,
such as "where two entries disagree, the one of the higher grade holds", that turns the plain reading into another. It needs both:
without the rule the entry that comes first would be the answer, and without the entries there is none. Items are kept only
where the two readings differ.
Source: Agents-A1 report (arXiv 2606.30616), long-context data: documents from a graph, injected rules and distractors.
"""

import random
import re
from collections.abc import Mapping
from typing import Any

from ....specs.generators import LongContextSettings
from ..graph import GraphStore
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator

LETTERS = "ABCD"
_RULES = (
    ("the one of the higher grade holds", max),
    ("the one of the lower grade holds", min),
)
_PLACES = [
    "Aldbeck",
    "Borrin",
    "Calder",
    "Dunmoor",
    "Eskdale",
    "Farrow",
    "Glenby",
    "Harrock",
    "Ivory",
    "Kelder",
    "Lorne",
    "Marsh",
    "Norrel",
    "Ostley",
    "Penrith",
    "Quarn",
]
_FILL = [
    "The ledger was kept in a dry room",
    "Visitors signed at the door",
    "The ink of the season was brown",
    "A clerk read every page aloud",
    "Weights were compared at noon",
    "The copy was bound in spring",
    "No page was ever removed",
    "The index is in another volume",
]


class LongContext(TaskGenerator):
    """Choose the right of four answers by documents and the rule among them."""

    name = "long_context"
    verifiers: Mapping[str, str] = {"outcome": "the letter is that of the right answer"}
    fewest_steps = 0
    duplicate_threshold = 1.01  # items share their documents' words

    def __init__(self, store: GraphStore, settings: LongContextSettings) -> None:
        super().__init__(store, settings)
        self._entries: dict[str, list[tuple[str, int, int]]] = {}  # by place: node, grade, amount
        self._rule_nodes = {node.body: node.id for node in store.nodes("constraint")}
        for node in store.nodes("fact"):
            grade, amount = map(int, re.findall(r"\d+", node.body)[-2:])
            self._entries.setdefault(node.name, []).append((node.id, grade, amount))

    @classmethod
    def furnish(cls, store: GraphStore, settings: LongContextSettings) -> None:
        if next(store.nodes("fact"), None) is not None:
            return
        rng = random.Random(f"ledgers:{settings.corpus_seed}")
        for number in range(settings.places):
            place = f"{_PLACES[number % len(_PLACES)]} {number}"
            grades = rng.sample(range(1, 9), 2)
            for grade, amount in zip(grades, rng.sample(range(100, 999), 2), strict=True):
                store.add("fact", place, f"The toll of {place} is entered with grade {grade} as {amount} marks")
        for words, _ in _RULES:
            store.add("constraint", "rule", f"Where two entries of a toll disagree, {words}")
        store.commit()

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        places = (region or rng).sample(sorted(self._entries), min(self.settings.documents, len(self._entries)))
        place, (words, choose) = places[0], rng.choice(_RULES)
        entries = self._entries[place]
        right = choose(entries, key=lambda entry: entry[1])[2]
        documents = [self._document(entry[0], rng) for one in places for entry in rng.sample(self._entries[one], 2)]
        rule = f"Where two entries of a toll disagree, {words}"
        documents.append(f"{' '.join(rng.sample(_FILL, 2))}. {rule}.")
        rng.shuffle(documents)
        amounts = [entry[2] for entry in entries]
        others = sorted({entry[2] for one in places[1:] for entry in self._entries[one]} - set(amounts))
        choices = [*amounts, *rng.sample(others, 2)]
        rng.shuffle(choices)
        text = "\n".join(f"[{number}] {document}" for number, document in enumerate(documents, start=1))
        listed = " ".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
        question = f"By these documents and their rule, what is the toll of {place}? {listed}"
        nodes = [*(entry[0] for entry in entries), self._rule_nodes[rule]]
        return TaskRecord(
            instruction=f"{text}\n\n{question} Say which documents decide, then the letter.",
            domain=self.name,
            key=f"{question} {words}",
            target=LETTERS[choices.index(right)],
            evidence=tuple(nodes),
            verifiers=("outcome",),
            payload={"place": place, "choices": choices},
        )

    def serve(self, task: TaskRecord, state: Any, call: Any) -> Shown:
        raise AssertionError("there is no tool")

    def accepts(self, task: TaskRecord, answer: str, state: Any = None) -> bool:
        return answer.rpartition("Answer:")[2].strip() == task.target

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        rules = [(words, choose) for words, choose in _RULES if words in task.instruction]
        entries = _entries_in(task.instruction, task.payload["place"])
        if not rules:  # nothing decides: every entry may be meant
            amounts = {amount for _, _, amount in entries}
        else:
            amounts = {choose(entries, key=lambda entry: entry[1])[2] for _, choose in rules} if entries else set()
        return frozenset(LETTERS[task.payload["choices"].index(one)] for one in amounts if one in task.payload["choices"])

    def one_lookup(self, task: TaskRecord) -> str | None:
        entries = _entries_in(task.instruction, task.payload["place"])
        return "all entries agree" if len({amount for _, _, amount in entries}) == 1 else None

    def shortcut(self, task: TaskRecord) -> str | None:
        question = task.instruction.rpartition("\n\n")[2]
        listed = [choice for choice in task.payload["choices"] if str(choice) in re.findall(r"\d+", question)]
        if len(listed) < len(LETTERS) or len(set(listed)) < len(LETTERS):
            return "the choices do not hide the answer"
        amounts = {amount for _, _, amount in _entries_in(task.instruction, task.payload["place"])}
        if len(amounts & set(task.payload["choices"])) < 2:
            return "without the rule one choice alone is an entry"
        return "the question says the letter" if re.search(r"answer (is|:) *[A-D]\b", question) else None

    def cited(self, task: TaskRecord, answer: str) -> tuple[str, ...]:
        numbers = {int(number) for number in re.findall(r"\[(\d+)\]", answer)}
        documents = dict(_documents(task.instruction))
        texts = [documents.get(number, "") for number in numbers]
        nodes = [node for identity in task.evidence if (node := self.store.node(identity))]
        return tuple(node.id for node in nodes if any(node.body in text for text in texts))

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        entries = _entries_in(task.instruction, task.payload["place"])
        rules = [(number, choose) for number, text in _documents(task.instruction) for words, choose in _RULES if words in text]
        if not rules or not entries:
            return "unknown"
        rule = rules[0]
        right = rule[1](entries, key=lambda entry: entry[1])[2]
        cites = "; ".join(f"[{number}] says {amount} with grade {grade}" for number, grade, amount in entries)
        return f"{cites}; [{rule[0]}] decides between them.\nAnswer: {LETTERS[task.payload['choices'].index(right)]}"
        yield

    def _document(self, identity: str, rng: random.Random) -> str:
        node = self.store.node(identity)
        assert node is not None
        filler = max(1, self.settings.document_words // 7)
        return f"{'. '.join(rng.choices(_FILL, k=filler))}. {node.body}. {'. '.join(rng.choices(_FILL, k=filler))}."


def _documents(text: str) -> list[tuple[int, str]]:
    return [(int(match[1]), match[2]) for match in re.finditer(r"^\[(\d+)\] (.*)$", text, re.MULTILINE)]


def _entries_in(text: str, place: str) -> list[tuple[int, int, int]]:
    """Entries of a place: the document's number, grade and amount."""
    pattern = re.compile(rf"The toll of {re.escape(place)} is entered with grade (\d+) as (\d+) marks")
    return [(number, int(match[1]), int(match[2])) for number, document in _documents(text) for match in pattern.finditer(document)]
