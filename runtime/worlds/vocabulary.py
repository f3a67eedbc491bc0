"""Every word that the built-in worlds write or read at their default settings; the word-level tokenizer is made of them."""

from ...specs.worlds import DRAWN_WORLDS
from .base import ERROR
from .calculator import OPERATORS
from .engineering import OPERATIONS
from .names import ITEMS, PEOPLE, PLACES, PROGRAMS, RELATIONS, THINGS, names
from .registry import CLASSES
from .science import FORMULAS, UNITS
from .scientific_tools import MASSES, QUANTITIES
from .search import NOTHING
from .tools import DONE, NOWHERE

NUMBERS = 100
# Worlds that brought words. Later ones are written in the words there are: a new one would move the ids of all.
NAMING = ("search", "engineering", "science", "instructions", "tools", "scientific_tools")


def tiny_words() -> list[str]:
    """The words, sorted."""
    settings = {name: cls() for name, cls in DRAWN_WORLDS.items()}
    words = {str(number) for number in range(NUMBERS)} | set(NAMING) | {ERROR, NOTHING, DONE, NOWHERE, "ok", "to", "of", "and"}
    words |= {"count", "end", "has", "order"} | set(OPERATORS) | set(UNITS) | {formula.quantity for formula in FORMULAS}
    words |= set(names(PEOPLE, settings["search"].entities)) | set(RELATIONS[: settings["search"].relations])
    words |= set(names(PROGRAMS, settings["engineering"].names)) | set(tuple(OPERATIONS)[: settings["engineering"].operations])
    words |= set(names(THINGS, settings["instructions"].words))
    words |= set(names(ITEMS, settings["tools"].items)) | set(names(PLACES, settings["tools"].places))
    words |= set(tuple(MASSES)[: settings["scientific_tools"].elements]) | set(QUANTITIES)
    for name in NAMING:
        words |= {action.name for action in CLASSES[name](settings[name]).graph.actions}
    return sorted(words)
