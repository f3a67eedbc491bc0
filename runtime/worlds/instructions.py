"""Instructions: an answer of words that keeps every constraint. No tools; the verifier checks each constraint.

Constraints: how many words, the last word, words that must occur, and words that must occur in an order.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ...specs.worlds import InstructionsSettings
from .base import Act, Answer, Call, GraphWorld, Observed, Turn, Unreadable
from .graph import Fact, KnowledgeActionGraph
from .names import THINGS, names


class InstructionsWorld(GraphWorld):
    """Constraints that fit together."""

    name = "instructions"

    def __init__(self, settings: InstructionsSettings) -> None:
        self.settings = settings
        self._words = names(THINGS, settings.words)
        counts = range(settings.fewest, max(settings.most, settings.fewest) + 1)
        facts = [Fact(subject="count", relation=str(count), value=f"the answer has {count} words") for count in counts]
        facts += [Fact(subject="end", relation=word, value=f"the last word is {word}") for word in self._words]
        facts += [Fact(subject="has", relation=word, value=f"one of the words is {word}") for word in self._words]
        self.graph = KnowledgeActionGraph(facts, actions=(), verifiers={"outcome": "the answer keeps every constraint"})
        self.word_classes = (self._words,)

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        count = int(rng.choice(self.graph.facts("count")).relation)
        required = rng.randint(1, self.settings.required)
        ordered = required > 1 and rng.random() < 0.5
        end = rng.choice(self.graph.facts("end")).relation
        musts = [fact.relation for fact in rng.sample(self.graph.facts("has"), min(required, len(self._words) - 1))]
        if end in musts or len(musts) + 1 > count:
            return None
        return {"count": count, "end": end, "musts": musts if ordered else sorted(musts), "ordered": ordered}

    def question(self, payload: Mapping[str, Any]) -> str:
        musts = payload["musts"]
        constraint = f"order {' '.join(musts)}" if payload["ordered"] else " ".join(f"has {word}" for word in musts)
        return f"instructions count {payload['count']} end {payload['end']} {constraint}"

    def evidence(self, payload: Mapping[str, Any]) -> list[str]:
        wanted = [("count", str(payload["count"])), ("end", payload["end"]), *(("has", word) for word in payload["musts"])]
        return [fact.value for subject, relation in wanted for fact in self.graph.facts(subject) if fact.relation == relation]

    def begin(self, payload: Mapping[str, Any]) -> None:
        return None

    def observe(self, payload: Mapping[str, Any], state: None, call: Call) -> Observed:
        raise Unreadable  # there are no tools

    def verify(self, payload: Mapping[str, Any], state: None, answer: str) -> bool:
        words = answer.split()
        if len(words) != payload["count"] or not all(word.isalpha() for word in words) or words[-1] != payload["end"]:
            return False
        rest = iter(words) if payload["ordered"] else None
        # `in` on an iterator goes on where the last search stopped, which is the order asked for.
        return all(word in (rest if rest is not None else words) for word in payload["musts"])

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        musts = list(payload["musts"])
        filler = [musts[-1]] * (payload["count"] - 1 - len(musts))
        return Answer(" ".join([*musts, *filler, payload["end"]]))

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return self._words.index(payload["end"]) % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Forget the last word."""
        return Answer(act.text.rsplit(" ", 1)[0]) if isinstance(act, Answer) else act
