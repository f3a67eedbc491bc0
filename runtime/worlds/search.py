"""Search: multi-hop questions over a small corpus, with an index by SQLite's FTS5.

Every person has a page that says whose boss, friend and so on the person is ("lima is boss of ada; friend of ivan"). So "friend of
boss of ada" wants two searches, and each answer is known only after the page is opened.
"""

import random
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from ...specs.worlds import SearchSettings
from .base import Act, Answer, Call, GraphWorld, Observed, Turn, Unreadable
from .graph import Action, Fact, KnowledgeActionGraph
from .names import PEOPLE, RELATIONS, names

NOTHING = "none"  # what a search without a hit observes


class SearchWorld(GraphWorld):
    """Questions whose answer is a person some relations away."""

    name = "search"

    def __init__(self, settings: SearchSettings) -> None:
        self.settings = settings
        self._people = names(PEOPLE, settings.entities)
        self._relations = RELATIONS[: settings.relations]
        rng = random.Random(f"corpus:{settings.corpus_seed}")
        facts = []
        for place, person in enumerate(self._people):
            for relation in self._relations:
                other = rng.choice(range(len(self._people) - 1))  # of the others: those after the person itself move up by one
                facts.append(Fact(subject=person, relation=relation, value=self._people[other + (other >= place)]))
        self.graph = KnowledgeActionGraph(
            facts,
            actions=(
                Action(
                    name="search",
                    description="Find pages that mention some words.",
                    parameters={"query": {"type": "array", "items": {"type": "string"}, "description": "Words to look for."}},
                    observation="the numbers of the best pages",
                ),
                Action(
                    name="open",
                    description="Read a page.",
                    parameters={"page": {"type": "integer", "description": "Number of the page."}},
                    observation="its title and text",
                ),
            ),
            verifiers={
                "outcome": "the answer is the person the relations lead to",
                "search": "the best page belongs to a person on the way",
                "open": "the page belongs to a person on the way",
            },
        )
        shelf = list(self._people)
        rng.shuffle(shelf)
        self._titles = dict(enumerate(shelf))
        sentences: dict[str, list[str]] = {person: [] for person in self._people}
        for fact in facts:
            sentences[fact.value].append(f"{fact.relation} of {fact.subject}")
        self._texts = {page: [f"{title} is {text}" for text in sentences[title]] for page, title in self._titles.items()}
        # Worlds are used from worker threads too; the index is only read after this.
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        self._index.execute("CREATE VIRTUAL TABLE pages USING fts5(text)")
        rows = [(page, "; ".join(text)) for page, text in self._texts.items()]
        self._index.executemany("INSERT INTO pages(rowid, text) VALUES (?, ?)", rows)
        numbers = tuple(str(page) for page in self._titles)
        self.word_classes = (self._people, self._relations, numbers)

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        start = rng.choice(self.graph.subjects)
        path = self.graph.walk(rng, start, self.settings.hops)
        if path is None or len({fact.relation for fact in path}) < min(len(path), 2):
            return None
        return {"start": start, "relations": [fact.relation for fact in path]}

    def question(self, payload: Mapping[str, Any]) -> str:
        return " of ".join([f"search {payload['relations'][-1]}", *reversed(payload["relations"][:-1]), payload["start"]])

    def begin(self, payload: Mapping[str, Any]) -> None:
        return None

    def observe(self, payload: Mapping[str, Any], state: None, call: Call) -> Observed:
        way = self._way(payload)
        if call.name == "open":
            title = self._titles.get(call.arguments["page"])
            if title is None:
                raise Unreadable
            text = "; ".join(self._texts[call.arguments["page"]][: self.settings.page_facts])
            return Observed(f"{title} {text}".strip(), float(title in way))
        pages = self._find(call.arguments["query"])
        if not pages:
            return Observed(NOTHING, 0.0)
        return Observed(" ".join(str(page) for page in pages), float(self._titles[pages[0]] in way))

    def verify(self, payload: Mapping[str, Any], state: None, answer: str) -> bool:
        return answer == self._way(payload)[-1]

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        person, hop, page = self._progress(payload, turns)
        if hop == len(payload["relations"]):
            return Answer(person)
        if page is not None:
            return Call("open", {"page": page})
        return Call("search", {"query": [payload["relations"][hop], "of", person]})

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return self._relations.index(payload["relations"][-1]) % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Skip the last hop: answer with the person before."""
        person, hop, page = self._progress(payload, turns)
        return Answer(person) if hop == len(payload["relations"]) - 1 and page is None else act

    def _way(self, payload: Mapping[str, Any]) -> list[str]:
        way: list[str] = []
        person = payload["start"]
        for relation in payload["relations"]:
            person = self.graph.value(person, relation) or ""
            way.append(person)
        return way

    def _progress(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[str, int, int | None]:
        """The person reached, the hops made, and the page found but not yet opened."""
        person, hop, page = str(payload["start"]), 0, None
        for turn in turns:
            first = turn.observation.split(" ")[0]
            if turn.call.name == "search":
                page = int(first) if first.isdigit() else None
            elif page is not None and first in self._people:
                person, hop, page = first, hop + 1, None
        return person, hop, page

    def _find(self, query: Sequence[str]) -> list[int]:
        """Pages that hold the words as a phrase, else those that hold any of them, the best first."""
        words = [word for text in query for word in "".join(c if c.isalnum() else " " for c in text).split()]
        if not words:
            raise Unreadable
        quoted = [f'"{word}"' for word in words[:32]]
        select = "SELECT rowid FROM pages WHERE pages MATCH ? ORDER BY rank, rowid LIMIT ?"
        for expression in (" + ".join(quoted), " OR ".join(quoted)):
            rows = self._index.execute(select, (expression, self.settings.results)).fetchall()
            if rows:
                return [row[0] for row in rows]
        return []
