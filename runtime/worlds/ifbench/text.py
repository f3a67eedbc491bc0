"""Words, sentences, lines and characters, as the constraints count them."""

import re
import unicodedata

_CONJUNCTIONS = "for and nor but or yet so"
_PRONOUNS = """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
    itself they them their theirs themselves this that these those who whom whose which what whoever whomever whichever whatever
    each either neither one oneself another other others some somebody someone something any anybody anyone anything nobody none
    nothing everybody everyone everything all both few many most several such
"""
_STOP_WORDS = """
    a about above after again against all am an and any are aren't as at be because been before being below between both but by can
    can't cannot could couldn't did didn't do does doesn't doing don't down during each few for from further had hadn't has hasn't
    have haven't having he her here hers herself him himself his how i if in into is isn't it it's its itself just me more most my
    myself no nor not now of off on once only or other our ours ourselves out over own same shan't she should shouldn't so some
    such than that the their theirs them themselves then there these they this those through to too under until up very was wasn't
    we were weren't what when where which while who whom why will with won't would wouldn't you your yours yourself yourselves
"""
CONJUNCTIONS = frozenset(_CONJUNCTIONS.split())
PRONOUNS = frozenset(_PRONOUNS.split())
STOP_WORDS = frozenset(_STOP_WORDS.split())
CLOSING = "\"'\u201d\u2019)]"  # what may follow the mark that ends a sentence
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE_END = re.compile(rf"(?<=[.!?\u203d])\s+|(?<=[.!?\u203d][{re.escape(CLOSING)}])\s+|\n\s*\n")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f]")
CONSONANTS = frozenset("bcdfghjklmnpqrstvwxyz")


def words(text: str) -> list[str]:
    """Runs of letters and digits, with inner apostrophes and hyphens."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """What ends in `.`, `!` or `?` before a space, or at an empty line; pieces without a word are left out."""
    return [piece.strip() for piece in _SENTENCE_END.split(text.strip()) if words(piece)]


def ending(sentence: str) -> str:
    """The last punctuation mark that ends a sentence; empty where none does."""
    return next((mark for mark in reversed(sentence.rstrip(CLOSING + " ")) if mark in ".!?\u203d"), "")


def lines(text: str) -> list[str]:
    """Lines with something in them, as they are indented."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def is_japanese(word: str) -> bool:
    """Whether a word holds kana or kanji."""
    return _JAPANESE.search(word) is not None


def is_emoji(character: str) -> bool:
    """Whether a character is a pictograph, or joins or colours one."""
    code = ord(character)
    joins = code in (0x200D, 0xFE0F) or 0x1F3FB <= code <= 0x1F3FF
    return joins or (unicodedata.category(character) == "So" and code >= 0x2190) or 0x1F1E6 <= code <= 0x1FAFF


def longest_alliteration(sentence: str) -> int:
    """The longest run of consecutive words with one first letter."""
    longest = run = 0
    last = ""
    for word in words(sentence.lower()):
        run = run + 1 if word[0] == last else 1
        last, longest = word[0], max(longest, run)
    return longest


def trigrams(text: str) -> set[str]:
    """Every three characters in a row."""
    return {text[place : place + 3] for place in range(len(text) - 2)}
