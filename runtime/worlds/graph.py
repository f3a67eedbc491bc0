"""The knowledge-action graph `G = (corpus, actions, observations, verifiers)` that a world draws its tasks from.

The corpus is a set of facts `subject --relation--> value`, one value for each pair. An action names what it observes. A task is
a region of the graph: a walk over facts, or a set of facts, together with the verifiers that decide it.
It is no view on the store of `knowledge/graph.py`: that one keeps, searches and verifies what was played, by content address in a
file, and has neither a relation's one value nor a random walk. All that the two would share is the word; a world here is a pure
function of its settings, made anew by every process, and needs no file.
Source: the Agents-A1 report (arXiv 2606.30616), section on the knowledge-action infrastructure.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One piece of evidence."""

    subject: str
    relation: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """A tool: what it takes and what it lets the model observe."""

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]  # JSON schema of each argument, in the order they are written
    observation: str  # what comes back

    def schema(self) -> dict[str, Any]:
        """The tool as an OpenAI function schema."""
        parameters = {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self.parameters.items()},
            "required": list(self.parameters),
            "additionalProperties": False,
        }
        description = f"{self.description} Returns {self.observation}."
        return {"type": "function", "function": {"name": self.name, "description": description, "parameters": parameters}}


class KnowledgeActionGraph:
    """Facts, actions and verifiers of one world."""

    def __init__(self, facts: Iterable[Fact], actions: Sequence[Action], verifiers: Mapping[str, str]) -> None:
        """Index the facts.

        Args:
            verifiers: what each verifier checks, by name ("outcome" and the names of actions whose steps are verified).

        Raises:
            ValueError: two facts give one subject and relation different values.
        """
        self.actions = tuple(actions)
        self.verifiers = dict(verifiers)
        self._facts: dict[str, dict[str, Fact]] = {}
        for fact in facts:
            known = self._facts.setdefault(fact.subject, {}).setdefault(fact.relation, fact)
            if known.value != fact.value:
                raise ValueError(f"{fact.subject} {fact.relation} is both {known.value} and {fact.value}")
        self.subjects = tuple(self._facts)

    def facts(self, subject: str) -> tuple[Fact, ...]:
        """What is known about a subject."""
        return tuple(self._facts.get(subject, {}).values())

    def all_facts(self) -> list[Fact]:
        """The corpus."""
        return [fact for subject in self.subjects for fact in self.facts(subject)]

    def value(self, subject: str, relation: str) -> str | None:
        """Where a relation leads from a subject, if it leads anywhere."""
        fact = self._facts.get(subject, {}).get(relation)
        return fact.value if fact else None

    def walk(self, rng: random.Random, start: str, length: int) -> list[Fact] | None:
        """A random walk that never meets a value twice; None where it ran into a dead end."""
        path: list[Fact] = []
        visited = {start}
        here = start
        for _ in range(length):
            onward = [fact for fact in self.facts(here) if fact.value not in visited]
            if not onward:
                return None
            path.append(rng.choice(onward))
            here = path[-1].value
            visited.add(here)
        return path
