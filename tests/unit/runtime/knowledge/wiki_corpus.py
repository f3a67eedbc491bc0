"""Writes a dump as MediaWiki 1.45 exports one (schema export-0.11): a small encyclopedia of people, towns, rivers, guilds and books.

Facts are drawn once and said by every page that they concern, so that walks can be checked against them. The markup is that of real
articles: infoboxes, nested templates, piped links, link trails, aliases, references, tables, comments, `nowiki`, pictures with links in
their captions, categories, interwiki links, disambiguation pages, redirects to pages and to sections, talk pages and modules.
"""

# ruff: noqa: E501  (markup reads best on its own line)
import bz2
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

NAMESPACES = {
    -2: "Media", -1: "Special", 0: "", 1: "Talk", 2: "User", 3: "User talk", 4: "Wikipedia", 6: "File", 8: "MediaWiki", 10: "Template",
    11: "Template talk", 12: "Help", 14: "Category", 100: "Portal", 118: "Draft", 828: "Module",
}  # fmt: skip
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.mediawiki.org/xml/export-0.11/ http://www.mediawiki.org/xml/export-0.11.xsd"
 version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <base>https://{language}.wikipedia.org/wiki/</base>
    <generator>MediaWiki 1.45.0-wmf.9</generator>
    <case>first-letter</case>
    <namespaces>
{namespaces}    </namespaces>
  </siteinfo>
"""
PAGE = """  <page>
    <title>{title}</title>
    <ns>{ns}</ns>
    <id>{identity}</id>{redirect}
    <revision>
      <id>{identity}1</id>
      <parentid>{identity}0</parentid>
      <timestamp>2026-05-01T12:00:00Z</timestamp>
      <contributor><username>A &amp; B</username><id>3</id></contributor>
      <minor />
      <comment>/* Course */ [[{title}]], title and text of no page: &lt;text&gt;</comment>
      <origin>{identity}1</origin>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{bytes}" sha1="0" xml:space="preserve">{text}</text>
      <sha1>0</sha1>
    </revision>
  </page>
"""
TEMPLATE = "<includeonly>{{{name|}}}</includeonly><noinclude>[[Town]]</noinclude>"
COUNTRIES = (("Veldoria", "Veldorian"), ("Ostmark", "Ostmarker"), ("Karelund", "Karelundish"), ("Sarovia", "Sarovian"))
GIVEN = (
    "Anna",
    "Bruno",
    "Clara",
    "Dieter",
    "Edda",
    "Falk",
    "Greta",
    "Henrik",
    "Ilse",
    "Jorun",
    "Karl",
    "Lotte",
    "Mats",
    "Nora",
    "Odo",
    "Petra",
)
TRADES = ("painter", "surveyor", "botanist", "engraver", "clockmaker", "composer", "geologist", "printer")
ONSETS, VOWELS = (
    ("B", "D", "F", "G", "H", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W", "Br", "St", "Gr"),
    ("a", "e", "i", "o", "u", "au", "ei"),
)
TOWN_ENDS, RIVER_ENDS, NAME_ENDS = (
    ("burg", "feld", "haven", "stedt"),
    ("ach", "itz", "ara", "une"),
    ("mann", "sen", "ler", "ow", "ing"),
)


@dataclass(kw_only=True)
class Thing:
    """What an article is about. `title` is the page's, `name` what a text calls it."""

    kind: str
    title: str
    name: str
    number: int
    aliases: list[str] = field(default_factory=list)
    facts: dict[str, "Thing | str | int"] = field(default_factory=dict, repr=False)  # they lead in circles


def invent(count: int, seed: int = 0) -> list[Thing]:
    """Things and their facts: a third are people, the rest towns, rivers, guilds and books."""
    rng = random.Random(seed)
    taken: set[str] = set()

    def fresh(ends: tuple[str, ...]) -> str:
        while True:
            name = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(("l", "n", "r", "m", "d", "")) + rng.choice(ends)
            name = name if rng.random() < 0.6 else rng.choice(ONSETS) + rng.choice(VOWELS) + name.lower()
            if name not in taken:
                taken.add(name)
                return name

    kinds = rng.choices(("person", "town", "river", "guild", "book"), (8, 6, 3, 3, 3), k=count)
    things = []
    for number, kind in enumerate(kinds):
        if kind == "person":
            given, family = rng.choice(GIVEN), fresh(NAME_ENDS)
            thing = Thing(kind=kind, title=f"{given} {family}", name=f"{given} {family}", number=number)
            thing.aliases = [f"{given[0]}. {family}", f"{given} {rng.choice(GIVEN)} {family}"][: rng.choice((0, 1, 2))]
        elif kind == "book":
            title = f"The {rng.choice(('Book', 'Atlas', 'Song', 'Mirror', 'Register'))} of {fresh(TOWN_ENDS)}"
            thing = Thing(kind=kind, title=f"{title} (book)" if number % 2 else title, name=title, number=number)
        else:
            name = fresh(RIVER_ENDS if kind == "river" else TOWN_ENDS)
            name = f"{name} Guild" if kind == "guild" else name
            apart = kind == "town" and number % 3 == 0
            thing = Thing(kind=kind, title=f"{name} ({kind})" if apart else name, name=name, number=number)
            thing.aliases = {
                "river": [f"River {name}", f"{name} River"],
                "town": [f"City of {name}"],
                "guild": [f"Guild of {name.split()[0]}"],
            }[kind]
        things.append(thing)
    of = {kind: [one for one in things if one.kind == kind] for kind in set(kinds)}

    def other(kind: str, than: Thing) -> Thing:
        return rng.choice([one for one in of[kind] if one is not than])

    for one in things:
        country = rng.choice(COUNTRIES)
        one.facts = {"country": country[0], "demonym": country[1], "year": rng.randint(1480, 1899)}
        one.facts |= {
            "person": lambda one=one: {"trade": rng.choice(TRADES), "birth": other("town", one), "teacher": other("person", one), "member": other("guild", one), "wrote": other("book", one)},
            "town": lambda one=one: {"river": other("river", one), "mayor": other("person", one), "twin": other("town", one), "people": rng.randint(900, 90_000)},
            "river": lambda one=one: {"into": other("river", one), "mouth": other("town", one), "source": other("town", one), "length": rng.randint(9, 400)},
            "guild": lambda one=one: {"seat": other("town", one), "founder": other("person", one), "rival": other("guild", one)},
            "book": lambda one=one: {"author": other("person", one), "place": other("town", one), "sequel": other("book", one)},
        }[one.kind]()  # fmt: skip
    return things


def link(thing: Thing, rng: random.Random) -> str:
    """A link as editors write them."""
    forms = [f"[[{thing.title}]]" if thing.title == thing.name else f"[[{thing.title}|{thing.name}]]"] * 4
    forms += [f"[[{alias}]]" for alias in thing.aliases]
    forms += [f"[[{thing.title}#History|{thing.name}]]", f"[[{thing.title.replace(' ', '_')}|{thing.name}]]"]
    if thing.kind == "person":
        forms.append(f"[[{thing.title}|{thing.name.split()[-1]}]]")
    return rng.choice(forms)


def article(one: Thing, things: list[Thing], rng: random.Random) -> str:
    """The wiki markup of a page."""
    facts = one.facts
    said = {name: link(value, rng) if isinstance(value, Thing) else value for name, value in facts.items()}
    plain = {name: value.name if isinstance(value, Thing) else value for name, value in facts.items()}
    last = one.name.split()[-1]
    bold = f"'''{one.name}'''" if not one.aliases else f"'''{one.name}''' (also ''{one.aliases[-1]}'')"
    cite = f'<ref name="r{one.number}">{{{{cite book |last={last} |title=On [[{plain.get("birth", "towns")}]] |year={{{{circa|{facts["year"]}}}}}|pages=1-9}}}}</ref>'
    bodies = {
        "person": (
            f"{bold} was a [[{facts['country']}|{facts['demonym']}]] {plain.get('trade')} who kept workbench {one.number}.{cite} "
            f"{last} was born in {said.get('birth')}.\n\nAs an apprentice {last} was taught by {said.get('teacher')}. {last}'s first years were poor. "
            f"In {facts['year']} the workshop joined the {said.get('member')}.\n\n== Later life ==\nThe late years were given to {said.get('wrote')}. "
        ),
        "town": (
            f"{bold} is a [[{facts['country']}|{facts['demonym']}]] [[town]] with {{{{formatnum:{plain.get('people')}}}}} hearths in roll {one.number}.{cite} "
            f"It lies on the {said.get('river')}.\n\nThe {last}ers celebrate in May. Since {facts['year']} it is a twin of {said.get('twin')}. "
            f"Its longest serving mayor was {said.get('mayor')}.\n\n"
        ),
        "river": (
            f"{bold} is a [[river]] of {{{{convert|{plain.get('length')}|km|mi|abbr=on}}}} numbered {one.number} in the gauge book.{cite} "
            f"It rises near {said.get('source')}. At {facts['year']} paces from the weir it flows into the {said.get('into')}. The mouth is close to {said.get('mouth')}.\n\n"
        ),
        "guild": (
            f"{bold} is a guild with {one.number} seals in the {facts['demonym']} chest.{cite} It has its seat in {said.get('seat')}. "
            f"It was founded by {said.get('founder')}.\n\nFor a century it was the rival of the {said.get('rival')}. The {last}s met at noon.\n\n"
        ),
        "book": (
            f"{bold} is a book of {one.number + 90} leaves printed in {facts['year']}.{cite} It was written by {said.get('author')}. "
            f"It was printed in {said.get('place')}.\n\nThe tale goes on in {said.get('sequel')}.\n\n"
        ),
    }  # fmt: skip
    near = rng.sample(things, 3)
    top = (
        f"{{{{Short description|{one.kind.title()} of {facts['country']}}}}}\n{{{{About|the {one.kind}|other uses|{one.name} (disambiguation)}}}}\n"
        f"{{{{Infobox {one.kind}\n| name = {one.name}\n| image = [[File:{one.name}.jpg|thumb|upright=1.2|A view of [[{near[0].title}|{near[0].name}]] at [[dusk]]]]\n"
        f"| region = {{{{flag|{facts['country']}|size={{{{nowrap|20px}}}}}}}}\n| other = {{{{plainlist|\n* [[{near[1].title}]]\n* {{{{nobold|[[{near[2].title}]]}}}}\n}}}}\n}}}}\n"
        f"[[File:Map of {one.name}.png|thumb|left|Map by [[{near[1].title}|{near[1].name}]], 12.5 km to the inch]]\n"
    )
    table = (
        '== Records ==\n{| class="wikitable sortable" style="text-align:right"\n|+ Kept since '
        f'{facts["year"]}\n! Year !! Entry\n|-\n| {facts["year"]} || [[{near[0].title}]]\n|-\n| colspan=2 | {{| class="inner"\n| [[{near[2].title}]]\n|}}\n|}}\n'
    )
    tail = (
        f"Prices rose by 2.5 percent&nbsp;a year<!-- see [[Talk:{one.name}]] & do not change -->; the sign reads <nowiki>[[{near[0].name}]]</nowiki>, "
        f"so {{{{lang|la|nihil}}}} more is known, cf. [https://example.org/{one.number} the ledger] and [[:de:{one.name}|the German page]].\n\n"
        f"{table}\n== See also ==\n* [[{near[1].title}]]\n* [[:Category:{one.kind.title()}s]]\n\n== References ==\n{{{{reflist|refs=\n{cite}\n}}}}\n\n"
        f"{{{{Navbox {one.kind}}}}}\n{{{{DEFAULTSORT:{last}, {one.name}}}}}\n[[Category:{one.kind.title()}s of {facts['country']}]]\n[[fr:{one.name}]]\n[[Category:{facts['year']}]]"
    )
    return f"{top}{bodies[one.kind]}{tail}"


@dataclass(frozen=True, slots=True)
class Exported:
    """A page of a dump."""

    ns: int
    title: str
    text: str
    redirect: str | None = None  # to a title, where the dump says so outside the text


def write_export(path: Path, pages: Iterable[Exported], language: str, namespaces: Mapping[int, str]) -> None:
    """Write pages to `.xml` or `.xml.bz2`."""
    named = "".join(
        f'      <namespace key="{key}" case="first-letter"' + (f">{name}</namespace>\n" if name else " />\n")
        for key, name in namespaces.items()
    )
    with bz2.open(path, "wt", encoding="utf-8") if path.suffix == ".bz2" else path.open("w", encoding="utf-8") as out:
        out.write(HEAD.format(language=language, namespaces=named))
        for identity, page in enumerate(pages, start=10):
            redirect = f"\n    <redirect title={quoteattr(page.redirect)} />" if page.redirect else ""
            model = "Scribunto" if page.ns == 828 else "wikitext"
            fields = {"title": escape(page.title), "text": escape(page.text), "bytes": len(page.text.encode())}
            out.write(PAGE.format(ns=page.ns, identity=identity, redirect=redirect, model=model, **fields))
        out.write("</mediawiki>\n")


def write_dump(path: Path, count: int, seed: int = 0) -> list[Thing]:
    """Write `.xml` or `.xml.bz2`; returns what the articles are about."""
    things, rng = invent(count, seed), random.Random(seed + 1)
    pages: list[Exported] = []
    for one in things:
        pages.append(Exported(0, one.title, article(one, things, rng)))
        for alias in one.aliases:
            pages.append(Exported(0, alias, f"#REDIRECT [[{one.title}]]\n\n{{{{R from alternative name}}}}", one.title))
        if one.title != one.name:
            text = f"'''{one.name}''' may refer to:\n* [[{one.title}]], a {one.kind}\n* [[{one.name} Hall]]\n\n{{{{disambiguation|geo}}}}"
            pages.append(Exported(0, one.name, text))
        if one.number % 7 == 0:
            text = f"== Sources ==\n{{{{WikiProject banner}}}} I doubt [[{one.title}]]. ~~~~"
            pages.append(Exported(1, f"Talk:{one.title}", text))
    for country, demonym in COUNTRIES:
        pages.append(Exported(0, country, f"'''{country}''' is a country. Its people are the {demonym}s.\n{{{{stub}}}}"))
    pages += [
        Exported(0, "Town", "A '''town''' is a place."),
        Exported(0, "River", "A '''river''' is water."),
        Exported(0, "Old loop", "#REDIRECT [[New loop]]", "New loop"),
        Exported(0, "New loop", "#REDIRECT [[Old loop]]", "Old loop"),
        Exported(0, "Gone", "#redirect [[Never written#Top]]", "Never written"),
        *(Exported(10, f"Template:Infobox {kind}", TEMPLATE) for kind in ("person", "town")),
        Exported(14, "Category:Towns of Veldoria", "[[Category:Towns]]"),
        Exported(828, "Module:Convert", "return {}"),
        Exported(118, "Draft:New", "[[Town]]"),
    ]
    mixed = sorted(range(len(pages)), key=lambda place: (place * 7919) % len(pages))
    write_export(path, (pages[place] for place in mixed), "en", NAMESPACES)
    return things
