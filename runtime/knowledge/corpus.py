"""An invented encyclopedia: hyperlinked pages of any length and number, the same for one seed everywhere.

It stands in where a spec names no corpus. Its pages have what a real wiki has that makes walks hard: lists, tail sections, pages
with one link, empty pages, disambiguation, titles that nearly repeat others, and every phrase of a link on many pages.
"""

import random
from collections.abc import Iterator

from .importers import Page, wiki_page

RELATIONS = (
    ("was founded by", "person"),
    ("took its name from", "person"),
    ("was first described by", "person"),
    ("lies on the shore of", "place"),
    ("was moved from", "place"),
    ("sends its yearly fair to", "place"),
    ("keeps its archive in", "place"),
    ("is the rival of", "thing"),
    ("replaced the older", "thing"),
    ("was copied from", "thing"),
)
_ONSETS = [
    "b",
    "br",
    "c",
    "cr",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "sk",
    "sl",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "io", "ou"]
_CODAS = ["", "l", "n", "r", "s", "t", "nd", "rk", "lm", "x"]
_SUBJECTS = [
    "the council",
    "the miller",
    "the harbour office",
    "a visiting surveyor",
    "the guild",
    "the old register",
    "the second charter",
]
_VERBS = ["measured", "recorded", "repaired", "sold", "painted", "counted", "moved", "closed", "renewed", "described"]
_OBJECTS = [
    "the bridge",
    "the northern wall",
    "forty barrels of salt",
    "the weights",
    "the bell tower",
    "a map of the coast",
    "the granary",
]
_ENDINGS = [
    "in spring",
    "after the flood",
    "without much notice",
    "twice in one year",
    "by lamplight",
    "for the last time",
    "before the frost",
]
KINDS = {"person": "a clerk", "place": "a town", "thing": "an instrument"}
FEWEST_LINKS = 3


def encyclopedia(pages: int, page_words: int, seed: int) -> Iterator[Page]:
    """Pages of about so many words, read from wiki markup like any other.

    Args:
        pages: articles; a tenth as many pages come on top that no walk may use.
    """
    rng = random.Random(f"encyclopedia:{seed}")
    titles = _names(rng, pages)
    kinds = {title: rng.choice(tuple(KINDS)) for title in titles}
    by_kind = {kind: [title for title in titles if kinds[title] == kind] for kind in KINDS}
    for number, title in enumerate(titles):
        yield wiki_page(title, _article(rng, number, title, kinds[title], by_kind, page_words))
        if number % 10 == 9:
            yield _useless(rng, number, title, titles)


def _article(rng: random.Random, number: int, title: str, kind: str, by_kind: dict[str, list[str]], page_words: int) -> str:
    """Wiki markup: a first sentence that nothing else has, links in sentences of their own, and what surrounds them."""
    found = rng.sample(RELATIONS, rng.randint(FEWEST_LINKS, 5))
    first = f"'''{title}''' is {KINDS[kind]} entered under number {1000 + number * 7} in the {_number_word(number)} roll."
    links = []
    for phrase, wanted in found:
        others = [one for one in rng.sample(by_kind[wanted], min(4, len(by_kind[wanted]))) if one != title]
        if others:
            links.append(f"It {phrase} [[{others[0]}]].")
    per_paragraph = max(1, page_words // (10 * (len(links) + 1)))
    paragraphs = [first + " " + _filler(rng, per_paragraph)]
    paragraphs += [
        f"{_filler(rng, per_paragraph // 2)} {link} {_filler(rng, per_paragraph - per_paragraph // 2)}" for link in links
    ]
    listed = "\n".join(f"* [[{rng.choice(by_kind[kind])}]]" for _ in range(2))
    return "\n\n".join(paragraphs) + f"\n\n== Rolls ==\n{listed}\n\n== See also ==\n[[{rng.choice(by_kind[kind])}]]\n"


def _useless(rng: random.Random, number: int, title: str, titles: list[str]) -> Page:
    other = rng.choice(titles)
    return (
        wiki_page(f"{title} (disambiguation)", f"{title} may refer to [[{title}]] or [[{other}]] or [[{titles[0]}]]."),
        wiki_page(f"{title}s", f"{title}s are named after [[{title}]], [[{other}]] and [[{titles[0]}]]."),
        wiki_page(f"Stub {number}", ""),
        wiki_page(f"Lone {number}", f"It stands alone, near [[{other}]]."),
    )[number // 10 % 4]


def _filler(rng: random.Random, sentences: int) -> str:
    found = []
    for _ in range(max(1, sentences)):
        subject = rng.choice(_SUBJECTS)
        found.append(f"{subject[0].upper()}{subject[1:]} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)} {rng.choice(_ENDINGS)}.")
    return " ".join(found)


def _names(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((2, 3)))]
        found.setdefault("".join(syllables).capitalize() + rng.choice(("", " " + _surname(rng))))
    return list(found)


def _surname(rng: random.Random) -> str:
    return (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) + rng.choice(_ONSETS) + rng.choice(_VOWELS)).capitalize()


def _number_word(number: int) -> str:
    return ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")[number % 7]
