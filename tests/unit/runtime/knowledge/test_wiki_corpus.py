"""Walks over a dump with all that real articles have: nothing of a name stays in a question, and no one lookup answers it."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from polymath.runtime.knowledge.generators.base import TaskGenerator
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.generators.search_walks import MASK, RESULTS, SNIPPET_CHARACTERS, masked
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.importers import import_into
from polymath.runtime.knowledge.records import TrajectoryRecord
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, accepted, self_play
from wiki_corpus import COUNTRIES, Thing, write_dump

PAGES, PLAYED = 300, 40


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Thing], Path]:
    folder = tmp_path_factory.mktemp("wiki")
    things = write_dump(folder / "enwiki.xml.bz2", PAGES)
    with GraphStore.create(folder / "wiki.sqlite") as store:
        assert import_into(store, "wiki", str(folder / "enwiki.xml.bz2")) == PAGES + len(COUNTRIES) + 2
    return {one.title: one for one in things}, folder / "wiki.sqlite"


@pytest.fixture(scope="module")
def played(things: tuple[dict[str, Thing], Path]) -> list[TrajectoryRecord]:
    with GraphStore.open(str(things[1]), writable=True) as store:
        report = self_play(make_generator("search_walks", {}, store), Roles(), Goal(accepted=PLAYED, attempts=1))
        assert report.accepted == PLAYED and not report.refused
        return list(accepted(make_generator("search_walks", {}, store)))


@pytest.fixture
def walks(things: tuple[dict[str, Thing], Path]) -> TaskGenerator:
    return make_generator("search_walks", {"graph": str(things[1])})


def test_a_page_reads_as_it_is_shown(things: tuple[dict[str, Thing], Path]) -> None:
    by_title, graph = things
    with GraphStore.open(str(graph)) as store:
        for title, one in by_title.items():
            (page,) = store.nodes("evidence", title)
            assert not re.search(r"\{\{|\}\}|\{\||<|&\w+;|''|==|__|\[(?!\[)|thumb|Category|\S  \S", page.body.replace("[[", "")), (
                page.body
            )
            assert "nihil more is known" in page.body and "the German page" in page.body, "texts of templates are kept"
            assert f"{one.facts['people']} hearths" in page.body if one.kind == "town" else True
            assert re.search(r"the sign reads \[\[.+\]\], so", page.body), "what stands between `nowiki` marks is a text"
            facts = {value.title for value in one.facts.values() if isinstance(value, Thing)}
            leads = {node.name for edge in store.edges(page.id, "transition") if (node := store.node(edge.target))}
            assert facts <= leads <= facts | {"Town", "River", *(country for country, _ in COUNTRIES)}, (
                "no link but those of the text"
            )


def test_nothing_of_a_name_stays_in_a_question(things: tuple[dict[str, Thing], Path], played: list[TrajectoryRecord]) -> None:
    by_title, graph = things
    with GraphStore.open(str(graph)) as store:
        for record in played:
            titles = [node.name for one in record.task.evidence if (node := store.node(one))] + [record.task.target or ""]
            start = by_title[titles[0]]
            called = [one for title in titles for one in (by_title[title].name, *by_title[title].aliases)]
            parts = {word for name in called for word in re.findall(r"[A-Z][a-z]+", name)} - {
                "The",
                "River",
                "City",
                "Guild",
                "Book",
            }
            said = re.findall(r"[A-Z][\w']*", record.task.payload["clue"])
            assert not [word for word in said for part in parts if word.startswith(part)], record.task.instruction
            if start.kind in ("person", "town"):  # whose clue links to the country
                assert start.facts["demonym"] not in record.task.instruction, "inflected forms are names too"
            assert MASK in record.task.instruction and len(re.findall(r"\w+", record.task.payload["clue"])) >= 4


def test_no_single_search_shows_the_answer(things: tuple[dict[str, Thing], Path], played: list[TrajectoryRecord]) -> None:
    by_title, graph = things
    with GraphStore.open(str(graph)) as store:
        for record in played:
            answer = by_title[record.task.target or ""]
            for words in (record.task.instruction, record.task.payload["clue"]):
                shown = "\n".join(f"{one.name}: {one.body[:SNIPPET_CHARACTERS]}" for one in store.find(words, RESULTS))
                assert not any(re.search(rf"\b{re.escape(name)}\b", shown) for name in (answer.name, *answer.aliases)), words


def test_hops_are_facts_and_no_page_is_visited_twice(things: tuple[dict[str, Thing], Path]) -> None:
    by_title, graph = things
    with GraphStore.open(str(graph)) as store:
        walks = make_generator("search_walks", {"hops": 6}, store)
        for task in walks.tasks("train", 10, 0):
            titles = [node.name for one in task.payload["evidence"] if (node := store.node(one))] + [task.payload["target"]]
            assert len(titles) == len(set(titles)) >= 7, "no page is visited twice"
            for here, there in pairwise(titles):
                assert there in {one.title for one in by_title[here].facts.values() if isinstance(one, Thing)}


def test_another_name_of_an_answer_is_as_much_a_leak(walks: TaskGenerator, things: tuple[dict[str, Thing], Path]) -> None:
    by_title, _ = things
    tasks = [walks.task_of(task) for task in walks.tasks("train", 40, 0)]
    task = next(one for one in tasks if by_title[one.target or ""].aliases)
    alias = by_title[task.target or ""].aliases[0]
    leaking = type(task)(
        **{**{name: getattr(task, name) for name in task.__slots__}, "instruction": f"{task.instruction} It is {alias}."}
    )
    assert walks.shortcut(task) is None and str(walks.shortcut(leaking)).startswith("the question names ")


@pytest.mark.parametrize(
    ("sentence", "names", "left"),
    [
        ("Anna Clara Lurow's house in Paris is Parisian.", ["Anna Lurow", "Paris"], "(...) house in (...) is (...)."),
        ("A. Lurow met Odo Brandt at noon.", ["Anna Lurow", "A. Lurow", "Odo Brandt"], "(...) met (...) at noon."),
        ("The town of Ely merely belied it.", ["Ely", "town"], "The town of (...) merely belied it."),
        (
            "Greidhaven (also City of Greidhaven) lies here.",
            ["Greidhaven (town)", "City of Greidhaven"],
            "(...) (also (...)) lies here.",
        ),
    ],
)
def test_names_are_masked_whole_inflected_and_in_part(sentence: str, names: list[str], left: str) -> None:
    assert masked(sentence, names) == left
