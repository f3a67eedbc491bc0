"""A MediaWiki export as dumps.wikimedia.org publishes it (schema export-0.11): import, walks, self-play, end to end."""

import random
import tracemalloc
from pathlib import Path

import pytest
from polymath.runtime.knowledge.generators.base import TaskGenerator
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.importers import Link, Page, add_pages, import_into
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, accepted, self_play
from wiki_corpus import Exported, write_export

LICENCE = "CC-BY-SA-4.0"
NAMESPACES = {-1: "Spezial", 0: "", 1: "Diskussion", 6: "Datei", 10: "Vorlage", 14: "Kategorie"}
ARTICLE = """{{{{Short description|River}}}}
{{{{Infobox river
| name = {title}
| image = [[Datei:{title}.jpg|thumb|The [[Weir of {other}|weir]]]]
| length = {{{{convert|{number}|km|mi}}}}
}}}}
[[Datei:{title} map.png|mini|hochkant|A map by [[Ludwig Born]] of the ''whole'' [[Lower {title}|lower]] valley]]
'''{title}'''&nbsp;(old spelling: ''{title}e'') is a river that was surveyed under number {number}.<ref name="survey">{{{{cite book
|title=Surveys |author=[[Ludwig Born]]|year=1907}}}}</ref><!-- do not move -->

== Course ==
{{| class="wikitable sortable"
|+ Places
! Place !! km
|-
| [[{other}]] || 12
|-
|
{{| class="nested"
| inner
|}}
|}}
It takes in the waters of {first}. Below the mills<ref name="survey" /> it is joined on its left bank by {second}.
The upper reach is said to share its source with {third}.

<gallery>
Datei:A.jpg|Caption with [[{other}]]
</gallery>
Its slope is <math>\\frac{{a}}{{b}}</math>, see [https://example.org/{title} the gauge]. __NOTOC__

* [[{other}]]

== References ==
<references />
{{{{reflist|30em}}}}

[[Kategorie:Rivers]]
[[fr:{title}]]
"""
NAMES = [
    f"{first}{last}"
    for first in ("Al", "Bor", "Cal", "Dun", "Esk", "Far", "Gan", "Hol", "Ir")
    for last in ("ach", "bern", "dor", "fel")
]


def dump(path: Path) -> list[str]:
    """Writes an export; returns the titles of its articles."""
    rng = random.Random(4)
    pages: list[tuple[str, int, str]] = []
    for number, title in enumerate(NAMES):
        one, two, three, other = rng.sample([name for name in NAMES if name != title], 4)
        links = {"first": f"the [[{one} (stream)]]", "second": f"[[{two[0].lower()}{two[1:]}]]", "third": f"[[{three}]] alone"}
        links["first"] = f"[[{one} River]]" if number % 2 else f"[[{one}]]"
        pages.append((title, 0, ARTICLE.format(title=title, other=other, number=100 + number, **links)))
        pages.append((f"{title} River", 0, f"#REDIRECT [[{title}]] {{{{R from other name}}}}"))
    pages += [
        ("Old Alach", 0, "#WEITERLEITUNG [[Alach River#Course]]"),
        ("Loop A", 0, "#REDIRECT [[Loop B]]"),
        ("Loop B", 0, "#REDIRECT [[Loop A]]"),
        ("Broken", 0, "#redirect [[Nowhere]]"),
        ("Al", 0, "'''Al''' may be:\n* [[Alach]]\n* [[Alber]]\n{{disambiguation}}"),
        ("Bor (disambiguation)", 0, "* [[Borach]]\n* [[Borbern]]"),
        ("Diskussion:Alach", 1, "I disagree. [[Alach]]"),
        ("Vorlage:Infobox river", 10, "{{{name}}} [[Alach]]"),
        ("Kategorie:Rivers", 14, "[[Alach]]"),
    ]
    exported: list[Exported] = []
    for number, (title, ns, text) in enumerate(pages):
        target = text.partition("[[")[2].partition("]]")[0] if text.lower().startswith(("#redirect", "#weiterleitung")) else ""
        exported.append(Exported(ns, title, text, target if number % 3 else None))  # old dumps have it in the text alone
    write_export(path, exported, "de", NAMESPACES)
    return NAMES


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wiki")
    titles = dump(folder / "dewiki-pages-articles.xml.bz2")
    with GraphStore.create(folder / "wiki.sqlite") as store:
        assert import_into(store, "wiki", str(folder / "dewiki-pages-articles.xml.bz2"), LICENCE) == len(titles)
    return folder / "wiki.sqlite"


@pytest.fixture(scope="module")
def walks(graph: Path) -> TaskGenerator:
    return make_generator("search_walks", {"graph": str(graph)})


def test_articles_alone_become_pages_and_their_text_is_plain(graph: Path) -> None:
    with GraphStore.open(str(graph)) as store:
        pages = {node.name: node.body for node in store.nodes("evidence")}
    assert sorted(pages) == sorted(NAMES), "no redirect, disambiguation, talk, template or category"
    for title, text in pages.items():
        assert not any(
            mark in text for mark in ("{{", "}}", "[[", "]]", "{|", "|}", "<", "&", "''", "==", "__", "http", "thumb", "mini")
        )
        assert text.startswith(f"{title}\xa0(old spelling: {title}e) is a river") and "number" in text
        assert "inner" not in text and "Surveys" not in text and "frac" not in text and "the gauge" in text


def test_links_lead_through_redirects_and_small_first_letters(graph: Path) -> None:
    with GraphStore.open(str(graph)) as store:
        names = {node.id: node.name for node in store.nodes()}
        redirects = {node.name: names[edge.target] for node in store.nodes("entity") for edge in store.edges(node.id, "transition")}
        assert redirects == {**{f"{title} River": title for title in NAMES}, "Old Alach": "Alach"}, (
            "loops and broken ones are left out"
        )
        for page in store.nodes("evidence"):
            links = {edge.body["anchor"]: names[edge.target] for edge in store.edges(page.id, "transition")}
            assert len(links) == 3, "tables, captions, lists, galleries and references hold no links"
            for anchor, target in links.items():
                assert anchor.removesuffix(" River").capitalize() == target and page.body.count(anchor) >= 1


def test_memory_does_not_grow_with_the_pages_of_an_import(tmp_path: Path) -> None:
    """With titles and links in memory it was 670 bytes a page."""
    link = Link(target="page 7", anchor="page 7", start=5)
    peaks = []
    for count in (300, 3000):
        with GraphStore.create(tmp_path / f"{count}.sqlite") as store:
            pages = (Page(title=f"page {number}", text=f"says page 7, {number}", links=[link] * 8) for number in range(count))
            tracemalloc.start()
            assert add_pages(store, pages, "test") == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100 * 2700, peaks


def test_walks_over_a_dump_are_played_and_kept(walks: TaskGenerator, graph: Path, tmp_path: Path) -> None:
    with GraphStore.create(tmp_path / "own.sqlite") as own:
        walks.store.sql.backup(own.sql)
        generator = type(walks)(own, walks.settings)
        report = self_play(generator, Roles(), Goal(accepted=10, attempts=1))
        records = list(accepted(generator))
    assert report.accepted == 10 and not report.refused
    assert {record.answer for record in records} <= {
        name for title in NAMES for name in (title, title.lower(), f"{title} River")
    } | {f"{title[0].lower()}{title[1:]}" for title in NAMES}
    assert {record.provenance["licence"] for record in records} == {LICENCE}
    asked = [str(one) for record in records for one in record.messages if one["role"] == "assistant"]
    assert any(" River" in one for one in asked), "some walk went over a redirect"


def test_a_redirect_s_title_opens_its_page_and_is_as_right_an_answer(walks: TaskGenerator) -> None:
    task = next(task for task in walks.tasks("train", 5, 0))
    target = task.payload["target"]
    call = {"id": "c", "function": {"name": "read_page", "arguments": f'{{"title": "{target} River"}}'}}
    (shown,) = walks.start(task).act({"role": "assistant", "content": "", "tool_calls": [call]})
    assert shown["content"].startswith(f"{target} (part 1 of 1)\n")
    record = walks.task_of(task)
    assert walks.accepts(record, f"{target} River") and walks.accepts(record, target.lower())
    assert not walks.accepts(record, "Old Alach" if target != "Alach" else "Borach")
