"""IFBench's constraints: for every one in the file, an answer that keeps it is accepted and one that breaks it is refused."""

import json
from pathlib import Path

import pytest
from polymath.runtime.worlds.ifbench.constraints import CHECKS, SIMPLE_SENTENCE, Asked
from polymath.runtime.worlds.ifbench.text import is_emoji, sentences, trigrams

FILE = Path(__file__).parents[6] / "shared/data/ifbench/IFBench_test.jsonl"
SOUNDS = [(first, second) for first in "bdfgklmnprst" for second in "cdfghjlmnpqrstvw"]
WORDS = [f"{first}o{second}e{number}" for number, (first, second) in enumerate(SOUNDS)]
CONJUNCTIONS = ["for", "and", "nor", "but", "or", "yet", "so"]
HOSTILE = (
    *("", " ", "\0", "(((((" * 2000, "'\"" * 5000, "a" * 100_000),
    *("*\n-\n*", "\u202e<i>", ". ! ?", "\U0001f600"),
)
FILLER = "fresh moss grows slowly"


def many(count, end="."):
    """So many different words that start differently from their neighbours."""
    alternating = [word for pair in zip(WORDS, reversed(WORDS), strict=True) for word in pair]
    return " ".join((alternating * (1 + count // len(alternating)))[:count]) + end


def numbered(count):
    return [f"{FILLER} today." for _ in range(count)]


def overlapping(asked):
    """A text of whose character trigrams a given share is the reference's."""
    reference, share = asked.arguments["reference_text"], asked.arguments["percentage"] / 100
    kept = reference
    while True:
        known = trigrams(kept)
        strange = round(len(known) * (1 - share) / share)
        tail = ""
        for code in range(strange):
            tail += chr(0x4E00 + code)
        text = kept + tail
        found = trigrams(text)
        if abs(100 * len(found & trigrams(reference)) / len(found) - 100 * share) <= 1.5 or len(kept) < 10:
            return text
        kept = kept[:-1]


def listed_names(asked):
    return [name.strip() for name in asked.prompt.rpartition("names:")[2].replace(".", " ").split(",") if name.strip()]


def options(asked):
    import re

    return [one.strip() for one in re.split(r"/|,|\bor\b", asked.arguments["options"]) if one.strip()]


# Kind: (an answer that keeps the constraint, one that breaks it), from what is asked.
ANSWERS = {
    "count:conjunctions": lambda a: (" ".join(CONJUNCTIONS[: a.number("small_n")]), "and and and"),
    "count:keywords_multiple": lambda a: (
        " ".join(" ".join([a.arguments[f"keyword{n}"]] * times) for n, times in enumerate((1, 2, 3, 5, 7), start=1)),
        " ".join(" ".join([a.arguments[f"keyword{n}"]] * times) for n, times in enumerate((1, 2, 3, 5, 6), start=1)),
    ),
    "count:numbers": lambda a: (" and ".join(["3,456.7"] * a.number("N")), " and ".join(["12"] * (a.number("N") + 1))),
    "count:person_names": lambda a: (
        ", ".join(listed_names(a)[: a.number("N")]),
        ", ".join([*listed_names(a)[: a.number("N") - 1], listed_names(a)[0]]),
    ),
    "count:pronouns": lambda a: ("they saw us. " * (a.number("N") // 2 + 1), "they " * (a.number("N") - 1)),
    "count:punctuation": lambda a: ("One, two; three: four. Five! Six? Seven?!", "One, two; three: four. Five! Six?"),
    "count:unique_word_count": lambda a: (many(a.number("N")), many(a.number("N") - 1) + " " + many(1)),
    "count:word_count_range": lambda a: (many(a.number("min_words")), many(a.number("max_words") + 1)),
    "count:words_japanese": lambda a: (
        " ".join([*["word"] * (a.number("N") - 1), "言葉", *["word"] * (a.number("N") - 1), "ことば"]),
        " ".join([*["word"] * (a.number("N") - 1), "言葉", *["word"] * (a.number("N") - 1), "kotoba"]),
    ),
    "format:emoji": lambda a: ("It rains. \U0001f327️ The 3.5 ducks like it! \U0001f986", "It rains. \U0001f327️ The ducks like it!"),
    "format:line_indent": lambda a: ("one\n two\n  three", "one\n two\n two"),
    "format:list": lambda a: (f"{a.arguments['sep']} one\n{a.arguments['sep']} two", "* one\n* two"),
    "format:newline": lambda a: ("one\ntwo\nthree", "one two\nthree"),
    "format:no_bullets_bullets": lambda a: ("It is so. It was so.\n* one\n* two", "It is so.\n* one\n* two"),
    "format:options": lambda a: (options(a)[0], f"{options(a)[0]}, because it is so"),
    "format:parentheses": lambda a: ("(a [b {c (d [e])}])", "(a [b {c (d)}])"),
    "format:quote_unquote": lambda a: ('"Be brief", that is, say little. "So be it" means yes.', '"Be brief" and "so be it"'),
    "format:quotes": lambda a: ("\"She said: 'he told me: \"go on\" and left'\"", "\"She said: 'go on'\" and didn't"),
    "format:sub-bullets": lambda a: ("* one\n  - sub\n* two\n  - sub", "* one\n  - sub\n* two"),
    "format:thesis": lambda a: ("<i>Rain is good.</i> It is.\n\n<em>Sun too.</em> Yes.", "<i>Rain is good.</i> It is.\n\nSun too."),
    "ratio:overlap": lambda a: (overlapping(a), a.arguments["reference_text"] if a.arguments["percentage"] < 97 else "xyzzy"),
    "ratio:sentence_balance": lambda a: ("It is. Is it? It is!", "It is. Is it? It is! It is."),
    "ratio:sentence_type": lambda a: ("It is. It was. Is it?", "It is. Is it?"),
    "ratio:sentence_words": lambda a: ("Cats run. Dogs eat. Owls fly.", "Cats run. Dogs run. Owls fly."),
    "ratio:stop_words": lambda a: ("green ideas sleep furiously tonight", "the of and to in is it that"),
    "repeat:repeat_change": lambda a: (
        " ".join(["Otherwise", *a.arguments["prompt_to_repeat"].split()[1:]]),
        a.arguments["prompt_to_repeat"],
    ),
    "repeat:repeat_simple": lambda a: (SIMPLE_SENTENCE, f"{SIMPLE_SENTENCE} Sure."),
    "sentence:alliteration_increment": lambda a: ("Cats run. Big birds sing. Tiny tame tigers talk.", "Cats run. Dogs eat."),
    "sentence:increment": lambda a: (
        " ".join(many(2 + a.number("small_n") * place) for place in range(3)),
        " ".join(many(2 + a.number("small_n") * place + (place == 2)) for place in range(3)),
    ),
    "sentence:keyword": lambda a: (
        " ".join([*numbered(a.number("N") - 1), f"Here is {a.arguments['word']} at last."]),
        " ".join([*numbered(a.number("N")), f"Here is {a.arguments['word']} at last."]),
    ),
    "words:consonants": lambda a: ("strong plants thrive", "strong plants grow up"),
    "words:keywords_specific_position": lambda a: (
        " ".join([*numbered(a.number("n") - 1), many(a.number("m") - 1, "") + f" {a.arguments['keyword']} it is."]),
        " ".join([*numbered(a.number("n") - 1), many(a.number("m"), "") + f" {a.arguments['keyword']} it is."]),
    ),
    "words:no_consecutive": lambda a: ("Cats eat dry food.", "Cats can eat."),
    "words:words_position": lambda a: (
        f"Well {a.arguments['keyword']} it goes {a.arguments['keyword']} on",
        f"Well {a.arguments['keyword']} it goes on {a.arguments['keyword']}",
    ),
}  # fmt: skip


def asked_in_file():
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            yield kind, Asked({name: value for name, value in (arguments or {}).items() if value is not None}, row["prompt"])


def test_every_kind_that_is_checked_has_a_test():
    assert set(ANSWERS) == set(CHECKS) and len(CHECKS) == 34


@pytest.mark.real_data
@pytest.mark.skipif(not FILE.is_file(), reason="there is no ../shared/data here")
def test_every_constraint_of_the_file_accepts_an_answer_that_keeps_it_and_refuses_one_that_does_not():
    constraints = list(asked_in_file())
    assert {kind for kind, _ in constraints} == set(CHECKS)
    for kind, asked in constraints:
        kept, broken = ANSWERS[kind](asked)
        assert CHECKS[kind](kept, asked), (kind, asked.arguments, kept[:300])
        assert not CHECKS[kind](broken, asked), (kind, asked.arguments, broken[:300])
        assert not CHECKS[kind]("", asked), kind
    assert len(constraints) > 200


@pytest.mark.parametrize("kind", sorted(CHECKS))
def test_no_text_makes_a_check_fail_with_an_exception(kind):
    arguments = {
        **{f"keyword{number}": "a" for number in range(1, 6)},
        **{"N": 2, "n": 2, "m": 2, "small_n": 2, "min_words": 1, "max_words": 3, "percentage": 50},
        **{"keyword": "a", "word": "a", "sep": "-", "options": "yes/no", "reference_text": "abc", "prompt_to_repeat": "say this"},
    }
    for text in HOSTILE:
        assert CHECKS[kind](text, Asked(arguments, "names: Emma, Liam.")) in (True, False)


def test_sentences_do_not_end_inside_a_number_and_emoji_are_pictographs():
    assert sentences('It is 3.5 m. Is it? "Yes!" he said.') == ["It is 3.5 m.", "Is it?", '"Yes!"', "he said."]
    assert all(map(is_emoji, "\U0001f600\u2600\u2764\U0001f1e9")) and not any(map(is_emoji, "a.!-*1 é"))
