"""Science: physical quantities with units, from formulas that chain where units fit.

The corpus is a graph of units: `kg --force--> N` says that a mass times an acceleration is a force.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...specs.worlds import ScienceSettings
from .base import ERROR, Act, Answer, Call, GraphWorld, Observed, Turn
from .calculator import CALCULATE, OPERATORS, calculate, same_number
from .graph import Fact, KnowledgeActionGraph


@dataclass(frozen=True, slots=True)
class Formula:
    """`quantity = a operator b`, with the units of a, b and the quantity."""

    quantity: str
    unit_a: str
    operator: str
    unit_b: str
    unit: str


FORMULAS = (
    Formula("force", "kg", "*", "m/s2", "N"),
    Formula("work", "N", "*", "m", "J"),
    Formula("power", "J", "/", "s", "W"),
    Formula("speed", "m", "/", "s", "m/s"),
    Formula("distance", "m/s", "*", "s", "m"),
    Formula("voltage", "A", "*", "ohm", "V"),
    Formula("current", "V", "/", "ohm", "A"),
    Formula("charge", "A", "*", "s", "C"),
    Formula("density", "kg", "/", "m3", "kg/m3"),
    Formula("pressure", "N", "/", "m2", "Pa"),
    Formula("length", "m", "+", "m", "m"),
    Formula("wait", "s", "-", "s", "s"),
)
UNITS = tuple(dict.fromkeys(unit for formula in FORMULAS for unit in (formula.unit_a, formula.unit_b, formula.unit)))


class ScienceWorld(GraphWorld):
    """Questions that want the right formula, a calculation, and the right unit."""

    name = "science"

    def __init__(self, settings: ScienceSettings) -> None:
        self.settings = settings
        self._formulas = {formula.quantity: formula for formula in FORMULAS}
        self.graph = KnowledgeActionGraph(
            [Fact(subject=formula.unit_a, relation=formula.quantity, value=formula.unit) for formula in FORMULAS],
            actions=(CALCULATE,),
            verifiers={"outcome": "number and unit are right", "calculate": "the calculation is the next one of the formulas"},
        )
        self.word_classes = (UNITS, OPERATORS, tuple(str(number) for number in range(100)))

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        fact = rng.choice(self.graph.all_facts())
        steps: list[dict[str, Any]] = []
        value = start = 0
        for number in range(self.settings.formulas):
            if number:
                onward = self.graph.facts(fact.value)
                if not onward:
                    return None
                fact = rng.choice(onward)
            pair = self._numbers(rng, self._formulas[fact.relation].operator, value if number else None)
            if pair is None:
                return None
            if not number:
                start = pair[0]
            steps.append({"quantity": fact.relation, "b": pair[1]})
            value = pair[2]
        return {"a": start, "steps": steps}

    def question(self, payload: Mapping[str, Any]) -> str:
        first = self._formulas[payload["steps"][0]["quantity"]]
        words = [self.name]
        for number, step in enumerate(payload["steps"]):
            words.append(step["quantity"])
            if number == 0:
                words += [str(payload["a"]), first.unit_a]
            words += [str(step["b"]), self._formulas[step["quantity"]].unit_b]
        return " ".join(words)

    def begin(self, payload: Mapping[str, Any]) -> None:
        return None

    def observe(self, payload: Mapping[str, Any], state: None, call: Call) -> Observed:
        a, operator, b = (call.arguments[name] for name in ("a", "operator", "b"))
        expected = (payload["a"], *self._results(payload)[:-1])
        right = any(
            (same_number(str(a), value), operator, b) == (True, self._formulas[step["quantity"]].operator, step["b"])
            for value, step in zip(expected, payload["steps"], strict=True)
        )
        return Observed(calculate(a, operator, b, self.settings.modulus), float(right))

    def verify(self, payload: Mapping[str, Any], state: None, answer: str) -> bool:
        words = answer.split()
        unit = self._formulas[payload["steps"][-1]["quantity"]].unit
        return len(words) == 2 and same_number(words[0], self._results(payload)[-1]) and words[1] == unit

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        results = [turn.observation for turn in turns if turn.observation != ERROR]
        steps = payload["steps"]
        if len(results) >= len(steps):
            return Answer(f"{results[-1]} {self._formulas[steps[-1]['quantity']].unit}")
        step = steps[len(results)]
        a = _number(results[-1]) if results else payload["a"]
        return Call("calculate", {"a": a, "operator": self._formulas[step["quantity"]].operator, "b": step["b"]})

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return list(self._formulas).index(payload["steps"][-1]["quantity"]) % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Name the wrong unit: always the same one for a formula."""
        if isinstance(act, Call):
            return act
        value, unit = act.text.split(" ")
        return Answer(f"{value} {UNITS[(UNITS.index(unit) + 1) % len(UNITS)]}")

    def _numbers(self, rng: random.Random, operator: str, a: int | None) -> tuple[int, int, int] | None:
        """Numbers a, b and the result, whole and between 1 and `largest`, with b at least 2; a is given or drawn."""
        largest = self.settings.largest
        if operator == "/":
            if a is None:
                b = rng.randint(2, largest // 2)
                a = b * rng.randint(2, max(2, largest // b))
            else:
                divisors = [b for b in range(2, min(a, 1000) + 1) if a % b == 0]
                b = rng.choice(divisors) if divisors else 0
            return (a, b, a // b) if b and a <= largest else None
        if a is None:
            a = rng.randint(2, largest // 2 if operator == "*" else largest - 2)
        most = {"*": largest // a, "+": largest - a, "-": a - 1}[operator]
        if most < 2:
            return None
        b = rng.randint(2, most)
        return a, b, {"*": a * b, "+": a + b, "-": a - b}[operator]

    def _results(self, payload: Mapping[str, Any]) -> list[int]:
        """The right value after every formula."""
        value, results = payload["a"], []
        for step in payload["steps"]:
            b = step["b"]
            operator = self._formulas[step["quantity"]].operator
            value = {"+": value + b, "-": value - b, "*": value * b, "/": value // b}[operator]
            results.append(value)
        return results


def _number(word: str) -> float | int:
    value = float(word)
    return int(value) if value.is_integer() else value
