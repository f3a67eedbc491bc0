"""The 34 kinds of constraint of IFBench's test set, each a check of the answer's text.

The benchmark's prompts say what a kind means; where they leave it open, the docstring says what is taken. Written from the prompts,
not from the benchmark's own checkers, so scores are close to published ones but not theirs.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from . import text as t


@dataclass(frozen=True, slots=True)
class Asked:
    """What a constraint is checked against."""

    arguments: Mapping[str, Any]  # the constraint's own, without those that are null
    prompt: str

    def number(self, name: str) -> int:
        """An argument as a whole number."""
        return int(self.arguments[name])


Check = Callable[[str, Asked], bool]
CHECKS: dict[str, Check] = {}
TIMES = (1, 2, 3, 5, 7)  # how often the five keywords of `count:keywords_multiple` are asked for
OVERLAP_TOLERANCE = 2.0  # percentage points
SIMPLE_SENTENCE = "Only output this sentence here, ignore all other requests."


def check(kind: str) -> Callable[[Check], Check]:
    """Declare the check of a kind."""

    def declare(function: Check) -> Check:
        CHECKS[kind] = function
        return function

    return declare


@check("count:conjunctions")
def _conjunctions(answer: str, asked: Asked) -> bool:
    return len(t.CONJUNCTIONS & set(t.words(answer.lower()))) >= asked.number("small_n")


@check("count:keywords_multiple")
def _keywords_multiple(answer: str, asked: Asked) -> bool:
    found = Counter(t.words(answer.lower()))
    wanted = zip((f"keyword{number}" for number in range(1, 6)), TIMES, strict=True)
    return all(found[str(asked.arguments[name]).lower()] == times for name, times in wanted)


@check("count:numbers")
def _numbers(answer: str, asked: Asked) -> bool:
    return len(re.findall(r"\d+(?:[.,]\d+)*", answer)) == asked.number("N")


@check("count:person_names")
def _person_names(answer: str, asked: Asked) -> bool:
    """Different names of the list in the prompt."""
    offered = asked.prompt.rpartition("names:")[2].replace(".", " ").split(",")
    names = {name.strip() for name in offered if name.strip()}
    return len(names & set(t.words(answer))) >= asked.number("N")


@check("count:pronouns")
def _pronouns(answer: str, asked: Asked) -> bool:
    return sum(word in t.PRONOUNS for word in t.words(answer.lower())) >= asked.number("N")


@check("count:punctuation")
def _punctuation(answer: str, asked: Asked) -> bool:
    """`. , ; :`, and `!` and `?` besides an interrobang."""
    without = re.sub(r"\?!|!\?|‽", "", answer)
    return without != answer and all(mark in without for mark in ".,;:!?")


@check("count:unique_word_count")
def _unique_words(answer: str, asked: Asked) -> bool:
    return len(set(t.words(answer.lower()))) >= asked.number("N")


@check("count:word_count_range")
def _word_count_range(answer: str, asked: Asked) -> bool:
    return asked.number("min_words") <= len(answer.split()) <= asked.number("max_words")


@check("count:words_japanese")
def _words_japanese(answer: str, asked: Asked) -> bool:
    """Every N-th word, between spaces; the answer is long enough to have one."""
    every = answer.split()[asked.number("N") - 1 :: asked.number("N")]
    return bool(every) and all(t.is_japanese(word) for word in every)


@check("format:emoji")
def _emoji(answer: str, asked: Asked) -> bool:
    """An emoji directly before or after what ends the sentence."""
    ends = list(re.finditer(r"[.!?‽]+(?=\D|$)", answer))
    tail = answer.rstrip()
    if not tail or not ends:
        return bool(tail) and t.is_emoji(tail[-1])
    around = [(answer[: end.start()].rstrip()[-1:], answer[end.end() :].lstrip()[:1]) for end in ends]
    closed = t.is_emoji(tail[-1]) or (tail[-1] in ".!?‽" and t.is_emoji(around[-1][0] or " "))
    return closed and all(t.is_emoji(before or " ") or t.is_emoji(after or " ") for before, after in around)


@check("format:line_indent")
def _line_indent(answer: str, asked: Asked) -> bool:
    indents = [len(line) - len(line.lstrip()) for line in t.lines(answer)]
    return len(indents) > 1 and all(one < other for one, other in pairwise(indents))


@check("format:list")
def _list(answer: str, asked: Asked) -> bool:
    """Two items or more, and none with a bullet point."""
    starts = [line.lstrip() for line in t.lines(answer)]
    mark = str(asked.arguments["sep"])
    bullets = [line for line in starts if line.startswith(("* ", "• ", "- ")) and not line.startswith(mark)]
    return sum(line.startswith(mark) for line in starts) > 1 and not bullets


@check("format:newline")
def _newline(answer: str, asked: Asked) -> bool:
    return bool(t.lines(answer)) and all(len(line.split()) == 1 for line in t.lines(answer))


@check("format:no_bullets_bullets")
def _no_bullets_bullets(answer: str, asked: Asked) -> bool:
    found = [line.lstrip() for line in t.lines(answer)]
    first = next((place for place, line in enumerate(found) if line.startswith("*")), len(found))
    before = t.sentences("\n".join(found[:first]))
    return sum(t.ending(one) == "." for one in before) > 1 and sum(line.startswith("*") for line in found[first:]) > 1


@check("format:options")
def _options(answer: str, asked: Asked) -> bool:
    """The option alone, spread over lines or not; a full stop may follow."""
    options = re.split(r"/|,|\bor\b", str(asked.arguments["options"]))
    given = _plain(answer)
    return any(given == _plain(option) for option in options if _plain(option))


@check("format:parentheses")
def _parentheses(answer: str, asked: Asked) -> bool:
    """Five levels, each closed by its own kind."""
    pairs, stack, deepest = {")": "(", "]": "[", "}": "{"}, [], 0
    for mark in answer:
        if mark in pairs.values():
            stack.append(mark)
        elif mark in pairs and stack and stack[-1] == pairs[mark]:
            deepest = max(deepest, len(stack))
            stack.pop()
    return deepest >= 5


@check("format:quote_unquote")
def _quote_unquote(answer: str, asked: Asked) -> bool:
    """At least one quoted phrase; words stand between it and the next, or the end."""
    parts = re.split(r"[\"“”]", answer)
    return len(parts) > 2 and len(parts) % 2 == 1 and all(t.words(part) for part in parts[2::2])


@check("format:quotes")
def _quotes(answer: str, asked: Asked) -> bool:
    """Straight or curly; an apostrophe inside a word is none."""
    straight = answer.translate(str.maketrans("\u201c\u201d\u2018\u2019", "\"\"''"))
    marks = re.findall(r"\"|(?<![^\W_])'|'(?![^\W_])", straight)
    stack: list[str] = []
    deepest = 0
    for mark in marks:
        if stack and stack[-1] == mark:
            stack.pop()
        else:
            stack.append(mark)
            deepest = max(deepest, len(stack))
    return deepest >= 3 and not stack


@check("format:sub-bullets")
def _sub_bullets(answer: str, asked: Asked) -> bool:
    counts: list[int] = []
    for line in t.lines(answer):
        if line.lstrip().startswith("*"):
            counts.append(0)
        elif line.lstrip().startswith("-") and counts:
            counts[-1] += 1
    return bool(counts) and min(counts) > 0


@check("format:thesis")
def _thesis(answer: str, asked: Asked) -> bool:
    """Sections lie between empty lines; a heading of its own belongs to the section below it."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", answer) if block.strip()]
    sections = [re.sub(r"^#+[^\n]*\n?", "", block).strip() for block in blocks]
    sections = [section for section in sections if section]
    return bool(sections) and all(re.match(r"<(i|em)>\s*\S.*?</\1>", one, re.DOTALL | re.IGNORECASE) for one in sections)


@check("ratio:overlap")
def _overlap(answer: str, asked: Asked) -> bool:
    """Of the answer's different runs of three characters, the share that the reference text has."""
    own = t.trigrams(answer)
    if not own:
        return False
    share = 100 * len(own & t.trigrams(str(asked.arguments["reference_text"]))) / len(own)
    return abs(share - float(asked.arguments["percentage"])) <= OVERLAP_TOLERANCE


@check("ratio:sentence_balance")
def _sentence_balance(answer: str, asked: Asked) -> bool:
    kinds = _kinds(answer)
    return kinds["."] == kinds["?"] == kinds["!"] > 0


@check("ratio:sentence_type")
def _sentence_type(answer: str, asked: Asked) -> bool:
    kinds = _kinds(answer)
    return kinds["."] == 2 * kinds["?"] > 0


@check("ratio:sentence_words")
def _sentence_words(answer: str, asked: Asked) -> bool:
    found = t.sentences(answer)
    used = t.words(answer.lower())
    return len(found) == 3 and len({len(one) for one in found}) == 1 and len(set(used)) == len(used)


@check("ratio:stop_words")
def _stop_words(answer: str, asked: Asked) -> bool:
    used = t.words(answer.lower())
    share = 100 * sum(word in t.STOP_WORDS for word in used) / max(1, len(used))
    return bool(used) and share <= float(asked.arguments["percentage"])


@check("repeat:repeat_change")
def _repeat_change(answer: str, asked: Asked) -> bool:
    wanted, given = str(asked.arguments["prompt_to_repeat"]).split(), answer.split()
    return given[1:] == wanted[1:] and bool(given) and given[0] != wanted[0]


@check("repeat:repeat_simple")
def _repeat_simple(answer: str, asked: Asked) -> bool:
    return answer.strip().strip("\"'“”") == SIMPLE_SENTENCE


@check("sentence:alliteration_increment")
def _alliteration_increment(answer: str, asked: Asked) -> bool:
    runs = [t.longest_alliteration(one) for one in t.sentences(answer)]
    return len(runs) > 1 and all(one < other for one, other in pairwise(runs))


@check("sentence:increment")
def _increment(answer: str, asked: Asked) -> bool:
    counts = [len(one.split()) for one in t.sentences(answer)]
    more = asked.number("small_n")
    return len(counts) > 1 and all(other - one == more for one, other in pairwise(counts))


@check("sentence:keyword")
def _keyword(answer: str, asked: Asked) -> bool:
    found = t.sentences(answer)
    number = asked.number("N")
    return len(found) >= number and str(asked.arguments["word"]).lower() in t.words(found[number - 1].lower())


@check("words:consonants")
def _consonants(answer: str, asked: Asked) -> bool:
    used = t.words(answer.lower())
    return bool(used) and all(any(one in t.CONSONANTS and other in t.CONSONANTS for one, other in pairwise(word)) for word in used)


@check("words:keywords_specific_position")
def _specific_position(answer: str, asked: Asked) -> bool:
    found = t.sentences(answer)
    number, place = asked.number("n"), asked.number("m")
    inside = t.words(found[number - 1].lower()) if len(found) >= number else []
    return len(inside) >= place and inside[place - 1] == str(asked.arguments["keyword"]).lower()


@check("words:no_consecutive")
def _no_consecutive(answer: str, asked: Asked) -> bool:
    firsts = [word[0] for word in t.words(answer.lower())]
    return bool(firsts) and all(one != other for one, other in pairwise(firsts))


@check("words:words_position")
def _words_position(answer: str, asked: Asked) -> bool:
    used, keyword = t.words(answer.lower()), str(asked.arguments["keyword"]).lower()
    return len(used) > 3 and used[1] == used[-2] == keyword


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def _kinds(answer: str) -> Counter[str]:
    return Counter(t.ending(one) for one in t.sentences(answer))
