"""Search: walks over hyperlinks, asked without the names on the way; the page at the end is the answer.

A walk starts at a page and follows links that stand in sentences. It never visits a page twice and drops pages that are empty,
have few links, are lists, disambiguate, or are titled nearly like one visited; at a dead end it goes back and takes another link,
in a short detour. The question describes the first page by a sentence that no other page has, with all names masked, and every hop
by the words before its link, which many pages have, so that no search finds the hop itself. Longer walks make longer episodes: the
walk goes on until its pages have as many tokens as the episode is to have.
Source: Agents-A1 report (arXiv 2606.30616), search data; the choice of the next page is at random where the report asks a model.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ....specs.generators import SearchWalksSettings
from ...worlds.base import Call, Unreadable
from ..corpus import encyclopedia
from ..graph import GraphStore, Node
from ..importers import add_pages, first_upper
from ..player import estimate_tokens
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator, tool

_ABBREVIATED = r"(?<=\b[A-Za-z])\.|(?<=\b(?:St|Dr|Mr|Ms|No|vs|ca))\."  # a full stop that ends no sentence
SENTENCE = re.compile(
    rf"(?:^|(?<=[.!?]\s)(?<!\b[A-Za-z]\.\s))(?:[^.!?\n]|{_ABBREVIATED}|[.!?](?=[^\s\"'”)\]])){{30,300}}[.!?](?=[\s\"'”)\]]|$)",
    re.MULTILINE,
)
CUE_WORDS, FEWEST_CUE_WORDS = 4, 2  # before a link; fewer where so many are on few pages
COMMON_CUE = 5  # pages that must have a cue, so that a search for it finds no hop
MASK = "(...)"
_MASKED_RUN = re.compile(r"\(\.\.\.\)(?: (?:\(\.\.\.\)|[A-Z]\w*(?:\.(?= ))?))*")  # one name, masked in part
_NO_NAMES = frozenset(("the", "of", "and", "in", "on", "at", "for", "to", "a", "an", "le", "la", "de", "von", "van"))
LONG_NAME = 4  # characters from which a name may carry an ending: Paris, Parisian
MOST_DETOURS = 8
SNIPPET_CHARACTERS = 160
RESULTS = 5
SPREAD = 0.5  # of the logarithm of an episode's length


class SearchWalks(TaskGenerator):
    """Questions whose answer is the title of the page at the end of a walk."""

    name = "search_walks"
    duplicate_threshold = 0.95  # two questions share the words around a clue and its cues
    verifiers: Mapping[str, str] = {
        "outcome": "the answer is the title of the page that the walk leads to",
        "read_page": "the page lies on the way",
    }

    def __init__(self, store: GraphStore, settings: SearchWalksSettings) -> None:
        super().__init__(store, settings)
        self.tools = (
            tool("search", "Find pages. Returns titles with the beginning of each page.", query="string: Words to look for."),
            tool("read_page", "Read a part of a page.", 1, title="string: Title of the page.", part="integer: Which, from 1."),
        )
        self._places = [row[0] for row in store.sql.execute("SELECT place FROM nodes WHERE kind = 'evidence' ORDER BY place")]
        self._page = lru_cache(4096)(self._load)
        self._titles = lru_cache(65_536)(self._by_title)
        self._cue_pages = lru_cache(65_536)(self._count_cue)
        self._names = lru_cache(65_536)(self._all_names)

    @classmethod
    def furnish(cls, store: GraphStore, settings: SearchWalksSettings) -> None:
        if next(store.nodes("evidence"), None) is None:
            add_pages(store, encyclopedia(settings.pages, settings.page_words, settings.corpus_seed), "encyclopedia")
            store.commit()

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        if not self._places:
            return None
        start = self._at((region or rng).choice(self._places))
        if not self._usable(start):
            return None
        clue = self._clue(start, rng)
        walk = self._walk(start, rng) if clue else None
        if clue is None or walk is None:
            return None
        pages, cues = walk
        hops = ", from there to what it says it ".join(f"“{cue}”" for cue in cues)
        instruction = (
            f"One page says: “{clue}” Go from the subject of that page to what it says it {hops}. "
            "What is the title of the page you reach?"
        )
        task = TaskRecord(
            instruction=instruction,
            domain=self.name,
            key=instruction,
            target=pages[-1].name,
            evidence=tuple(page.id for page in pages[:-1]),
            verifiers=("outcome",),
            payload={"clue": clue, "cues": cues},
        )
        # Now and then a search for the clue shows the page at the end among others.
        return None if self.one_lookup(task) else task

    def serve(self, task: TaskRecord, state: Any, call: Call) -> Shown:
        if call.name == "search":
            found = self.store.find(call.arguments["query"], RESULTS)
            lines = [f"{node.name}: {' '.join(node.body[:SNIPPET_CHARACTERS].split())}" for node in found]
            return Shown("\n".join(lines) or "nothing found")
        page = self._titles(call.arguments["title"])
        if page is None:
            raise Unreadable("there is no such page")
        part, size = call.arguments.get("part", 1), self.settings.part_characters
        parts = max(1, -(-len(page.body) // size))
        if not isinstance(part, int) or not 1 <= part <= parts:
            raise Unreadable(f"the page has parts 1 to {parts}")
        shown = f"{page.name} (part {part} of {parts})\n{page.body[(part - 1) * size : part * size]}"
        return Shown(shown, (page.id,) if part == parts else (), float(page.id in task.evidence))

    def accepts(self, task: TaskRecord, answer: str, state: Any = None) -> bool:
        """The title, or one that redirects to its page."""
        if _plain(answer) == _plain(task.target or ""):
            return True
        page = self._titles(answer.strip())
        return page is not None and page.name == task.target

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        here = [node for node in self.store.find(task.payload["clue"], 50) if self._meets(node, task.payload["clue"])]
        for cue in task.payload["cues"]:
            here = [self._page(target) for page in here for target in self._onward(page).get(cue, ())]
            here = list({page.id: page for page in here}.values())
        return frozenset(page.name for page in here)

    def one_lookup(self, task: TaskRecord) -> str | None:
        if len(task.payload["cues"]) < 2:
            return "the walk has one hop"
        answers = self._names_of_target(task)
        for words in (task.instruction, task.payload["clue"].replace(MASK, " ")):
            for number, found in enumerate(self.store.find(words, RESULTS)):
                shown = found.body if not number else f"{found.name} {found.body[:SNIPPET_CHARACTERS]}"
                if any(_mentions(shown, name) for name in answers):
                    return "a search for the question shows the answer, or first of all a page that names it"
        return None

    def shortcut(self, task: TaskRecord) -> str | None:
        answers = self._names_of_target(task)
        names = [name for identity in task.evidence for name in self._names(identity)]
        if named := [name for name in [*names, *answers] if _mentions(task.instruction, name)]:
            return f"the question names {named[0]}"
        early = [node for identity in task.evidence[:-1] if (node := self.store.node(identity))]
        if any(_mentions(node.body, name) for node in early for name in answers):
            return "a page before the last names the answer"
        if rare := [cue for cue in task.payload["cues"] if self._cue_pages(cue) < COMMON_CUE]:
            return f"few pages say “{rare[0]}”"
        return None

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        found = yield Call("search", {"query": task.payload["clue"].replace(MASK, " ")})
        title = ""
        for line in found.splitlines():
            text = yield from self._read(line.split(": ")[0])
            if self._text_meets(text, task.payload["clue"]):
                title = line.split(": ")[0]
                break
        for number, cue in enumerate(task.payload["cues"]):
            if number:
                text = yield from self._read(title)
            if (place := text.find(cue + " ")) < 0:
                return "unknown"
            title = self._title_at(text[place + len(cue) + 1 :])
        return title

    def _read(self, title: str) -> Any:
        """All parts of a page, as one text."""
        shown = yield Call("read_page", {"title": title})
        heading, _, text = shown.partition("\n")
        parts = re.search(r"\(part 1 of (\d+)\)$", heading)
        for part in range(2, int(parts[1]) + 1 if parts else 2):
            shown = yield Call("read_page", {"title": title, "part": part})
            text += shown.partition("\n")[2]
        return text

    def _title_at(self, text: str) -> str:
        """The longest run of words at the beginning of a text that is a title."""
        words = text[:200].split()
        for count in range(min(8, len(words)), 0, -1):
            title = " ".join(words[:count]).rstrip(".,;:!?")
            if self._titles(title) is not None:
                return title
        return "unknown"

    def _walk(self, start: Node, rng: random.Random) -> tuple[list[Node], list[str]] | None:
        """Pages and the cues between them; None where every way ends too early."""
        wanted = self.settings.mean_tokens
        if wanted is not None:
            # Lengths spread log-normally about their mean; whole pages overshoot by half of one on average.
            wanted = rng.lognormvariate(0.0, SPREAD) * wanted / 2.718281828 ** (SPREAD**2 / 2)
        pages, cues, detours = [start], [], 0
        tried: set[str] = {start.id}
        tokens = self._cost(start)
        while len(cues) < self.settings.hops or (wanted is not None and tokens < wanted and len(cues) < self.settings.most_hops):
            ways = [(cue, target) for cue, targets in self._onward(pages[-1]).items() if len(targets) == 1 for target in targets]
            ways = [way for way in ways if way[1] not in tried]
            ways = [way for way in ways if self._usable(page := self._page(way[1])) and self._is_new(page, pages)]
            if not ways:
                if len(cues) < 1 or detours == MOST_DETOURS:
                    break
                detours += 1
                tokens -= self._cost(pages.pop())
                cues.pop()
                continue
            cue, target = rng.choice(ways)
            tried.add(target)
            pages.append(self._page(target))
            cues.append(cue)
            tokens += self._cost(pages[-1])
        # The answer is named by the last page but one alone.
        while len(cues) >= 2 and any(_mentions(page.body, name) for page in pages[:-2] for name in self._names(pages[-1].id)):
            pages.pop()
            cues.pop()
        return (pages, cues) if len(cues) >= min(2, self.settings.hops) else None

    def _cost(self, page: Node) -> int:
        """Tokens that reading a page takes, with the turns around it."""
        return estimate_tokens(page.body) + 40

    def _usable(self, page: Node) -> bool:
        if not page.body.strip() or "disambiguation" in page.name.lower() or "may refer to" in page.body[:300]:
            return False
        return not page.name.lower().startswith("list of") and len(self._onward(page)) >= self.settings.fewest_links

    def _is_new(self, page: Node, visited: Sequence[Node]) -> bool:
        title = _plain(page.name)
        return not any(title.startswith(_plain(one.name)[:-1]) or _plain(one.name).startswith(title[:-1]) for one in visited)

    def _onward(self, page: Node) -> dict[str, list[str]]:
        """Where the links of a page lead, by the words before each."""
        return self._links(page.id)

    def _links(self, identity: str) -> dict[str, list[str]]:
        page, found = self._page(identity), {}
        for edge in self.store.edges(identity, "transition"):
            if not isinstance(start := edge.body.get("start"), int):
                continue
            sentence = page.body[max(0, start - 120) : start]
            words = re.split(r"[.!?\n]\s*", sentence)[-1].split()
            words = words[1:] if len(words) <= CUE_WORDS + 1 else words[-CUE_WORDS:]
            cues = (" ".join(words[place:]) for place in range(max(1, len(words) - FEWEST_CUE_WORDS + 1)))
            cue = next((one for one in cues if page.body.count(f"{one} ") == 1 and self._cue_pages(one) >= COMMON_CUE), None)
            if not cue:
                continue
            shown = self._titles(self._title_at(page.body[start:]))  # what one who reads the words finds
            if shown is not None and shown.id == edge.target:
                found.setdefault(cue, []).append(edge.target)
        return found

    def _clue(self, page: Node, rng: random.Random) -> str | None:
        """A sentence of a page that no other page has, its names masked: its own and those of the pages that it links to."""
        links = self.store.edges(page.id, "transition")
        names = {*self._names(page.id), *(name for edge in links for name in self._names(edge.target))}
        names |= {str(edge.body.get("anchor", "")) for edge in links}
        sentences = [match[0].strip() for match in SENTENCE.finditer(page.body[:2000])]
        for sentence in sentences[:1] + rng.sample(sentences[1:], min(3, len(sentences[1:]))):
            clue = masked(sentence, names)
            found = [node for node in self.store.find(clue, 50) if self._meets(node, clue)]
            if len(clue.replace(MASK, "").split()) >= 4 and [node.id for node in found] == [page.id]:
                return clue
        return None

    def _meets(self, node: Node, clue: str) -> bool:
        return self._text_meets(node.body, clue)

    def _text_meets(self, text: str, clue: str) -> bool:
        pieces = [re.escape(piece) for piece in clue.split(MASK)]
        return re.search(r"[^\n]{1,80}?".join(pieces), text) is not None

    def _count_cue(self, cue: str) -> int:
        phrase = '"' + " ".join("".join(one if one.isalnum() else " " for one in cue).split()) + '"'
        query = "SELECT count(*) FROM (SELECT 1 FROM texts WHERE texts MATCH ? LIMIT ?)"
        return self.store.sql.execute(query, (phrase, COMMON_CUE)).fetchone()[0]

    def _load(self, identity: str) -> Node:
        node = self.store.node(identity)
        assert node is not None
        return node

    def _by_title(self, title: str) -> Node | None:
        """The page of a title, of a title that redirects to it, or of either with a small first letter."""
        for spelled in dict.fromkeys((title, first_upper(title))):
            if (page := next(self.store.nodes("evidence", spelled), None)) is not None:
                return page
            for redirect in self.store.nodes("entity", spelled):
                return next((self._page(edge.target) for edge in self.store.edges(redirect.id, "transition")), None)
        return None

    def _all_names(self, identity: str) -> tuple[str, ...]:
        """What a page is called: its title, titles that redirect to it, and each without what it has in brackets."""
        redirects = (
            "SELECT nodes.name FROM edges JOIN nodes ON nodes.id = edges.source "
            "WHERE edges.target = ? AND edges.kind = 'transition' AND nodes.kind = 'entity'"
        )
        titles = [self._page(identity).name, *(row[0] for row in self.store.sql.execute(redirects, (identity,)))]
        return tuple(dict.fromkeys(name for title in titles for name in (title, title.partition(" (")[0])))

    def _names_of_target(self, task: TaskRecord) -> tuple[str, ...]:
        page = self._titles(task.target or "")
        return (task.target or "",) if page is None else self._names(page.id)

    def _at(self, place: int) -> Node:
        return Node(*self.store.sql.execute("SELECT id, kind, name, body FROM nodes WHERE place = ?", (place,)).fetchone())


def masked(sentence: str, names: Iterable[str]) -> str:
    """A sentence without names: whole ones, then their single words, with whatever ending. What begins small is no name."""
    words = {word.strip(".,()'\u2019\"") for name in names for word in name.split()}
    words = {word for word in words if len(word) > 2 and word.lower() not in _NO_NAMES}
    for part in sorted((one for one in {*names, *words} if one[:1].isupper()), key=lambda one: (-len(one), one)):
        ending = r"\w*(?:['\u2019]s)?" if len(part) >= LONG_NAME else r"(?!\w)"
        sentence = re.sub(rf"(?<!\w){re.escape(part)}{ending}", MASK, sentence)
    return _MASKED_RUN.sub(MASK, sentence)


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split()).strip(" .\"'“”")


def _mentions(text: str, name: str) -> bool:
    return bool(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
