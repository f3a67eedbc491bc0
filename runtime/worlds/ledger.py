"""Ledger: enter one amount after the other; a wrong one can leave the books unbalanced, and what balances them is removed again.

The corpus is a graph of values, `35 --add 15--> 50`: a balanced value is a multiple of the unit, and the amount due there is
known by heart; what an unbalanced value is over the last balanced one has to be removed.
"""

import random

from ...specs.worlds import LedgerSettings
from .base import Call
from .course import CourseWorld, round_trip
from .graph import Action, Fact, KnowledgeActionGraph

NUMBERS = 100
_AMOUNT = {"type": "integer", "description": "How much."}


class LedgerWorld(CourseWorld):
    """Enter `horizon` right amounts."""

    name = "ledger"
    word = "count"

    def __init__(self, settings: LedgerSettings) -> None:
        self.horizon, self.astray_share = settings.horizon, settings.astray
        rng = random.Random(f"{self.name}:{settings.book_seed}")
        self._unit = settings.unit
        modulus = NUMBERS - NUMBERS % self._unit  # values wrap around there
        self.path = range(0, modulus, self._unit)
        self.astray = [value for value in range(modulus) if value % self._unit]
        amounts = range(1, modulus)
        self._due = {value: (after - value) % modulus for value, after in round_trip(self.path, rng).items()}
        facts = [
            Fact(subject=str(value), relation=f"{verb} {amount}", value=str((value + sign * amount) % modulus))
            for value in range(modulus)
            for amount in amounts
            for verb, sign in (("add", 1), ("remove", -1))
        ]
        self.graph = KnowledgeActionGraph(
            facts,
            actions=(
                Action(
                    name="add",
                    description="Enter an amount.",
                    parameters={"amount": _AMOUNT},
                    observation="the value, and how many right entries are left",
                ),
                Action(
                    name="remove",
                    description="Take an amount off again.",
                    parameters={"amount": _AMOUNT},
                    observation="the value, and how many right entries are left",
                ),
            ),
            verifiers={
                "outcome": "no entry is left",
                "add": "the amount is due and the value balanced",
                "remove": "the value is balanced again",
            },
        )
        self.word_classes = (tuple(str(one) for one in amounts),)

    def due(self, place: int) -> Call:
        if place in self.path:
            return Call("add", {"amount": self._due[place]})
        return Call("remove", {"amount": place % self._unit})

    def stray(self, place: int) -> Call:
        amount = self._due[place]
        return Call("add", {"amount": amount - 1 if amount > 1 else amount + 1})

    def relation(self, call: Call) -> str:
        return f"{call.name} {call.arguments['amount']}"
