"""Scientific tools: chains over small calculators of chemical elements.

The corpus says for every element its molar mass, its protons and the neutrons of its usual isotope. A question combines some of
them, from left to right: "molar_mass iron + protons oxygen".
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ...specs.worlds import ScientificToolsSettings
from .base import ERROR, Act, Answer, Call, GraphWorld, Observed, Turn, Unreadable
from .calculator import CALCULATE, OPERATORS, calculate, same_number
from .graph import Action, Fact, KnowledgeActionGraph

# IUPAC's abridged standard atomic weights (2021), in g/mol, by atomic number; technetium has none, so its longest-lived isotope.
MASSES = {
    "hydrogen": 1.008, "helium": 4.0026, "lithium": 6.94, "beryllium": 9.0122, "boron": 10.81, "carbon": 12.011,
    "nitrogen": 14.007, "oxygen": 15.999, "fluorine": 18.998, "neon": 20.180, "sodium": 22.990, "magnesium": 24.305,
    "aluminium": 26.982, "silicon": 28.085, "phosphorus": 30.974, "sulfur": 32.06, "chlorine": 35.45, "argon": 39.95,
    "potassium": 39.098, "calcium": 40.078, "scandium": 44.956, "titanium": 47.867, "vanadium": 50.942, "chromium": 51.996,
    "manganese": 54.938, "iron": 55.845, "cobalt": 58.933, "nickel": 58.693, "copper": 63.546, "zinc": 65.38,
    "gallium": 69.723, "germanium": 72.630, "arsenic": 74.922, "selenium": 78.971, "bromine": 79.904, "krypton": 83.798,
    "rubidium": 85.468, "strontium": 87.62, "yttrium": 88.906, "zirconium": 91.224, "niobium": 92.906, "molybdenum": 95.95,
    "technetium": 97.0, "ruthenium": 101.07, "rhodium": 102.91, "palladium": 106.42, "silver": 107.87, "cadmium": 112.41,
    "indium": 114.82, "tin": 118.71, "antimony": 121.76, "tellurium": 127.60, "iodine": 126.90, "xenon": 131.29,
}  # fmt: skip
QUANTITIES = {"molar_mass": "molar mass in g/mol", "protons": "number of protons", "neutrons": "number of neutrons"}
WRONG_OPERATOR = {"+": "*", "*": "-", "-": "+"}  # the habit


class ScientificToolsWorld(GraphWorld):
    """Questions that want several look-ups and calculations in order."""

    name = "scientific_tools"

    def __init__(self, settings: ScientificToolsSettings) -> None:
        self.settings = settings
        self._elements = tuple(MASSES)[: settings.elements]
        facts = []
        for protons, element in enumerate(self._elements, start=1):
            # The mass number nearest to the atomic weight; where no isotope is the usual one this is a school-book convention.
            neutrons = round(MASSES[element]) - protons
            mass = round(MASSES[element], settings.decimals)
            facts.append(Fact(subject=element, relation="molar_mass", value=f"{mass:.12g}"))
            facts.append(Fact(subject=element, relation="protons", value=str(protons)))
            facts.append(Fact(subject=element, relation="neutrons", value=str(neutrons)))
        element = {"type": "string", "description": "English name of the element, such as iron."}
        self.graph = KnowledgeActionGraph(
            facts,
            actions=(
                *(
                    Action(
                        name=name,
                        description=f"Look up an element's {what}.",
                        parameters={"element": element},
                        observation="a number",
                    )
                    for name, what in QUANTITIES.items()
                ),
                CALCULATE,
            ),
            verifiers={
                "outcome": "the number is right",
                "calculate": "the calculation is one the question asks for",
                **dict.fromkeys(QUANTITIES, "the question asks for this quantity of this element"),
            },
        )
        self.word_classes = (self._elements, OPERATORS, tuple(str(number) for number in range(100)))

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        elements = rng.sample(self.graph.subjects, min(self.settings.terms, len(self._elements)))
        terms = [[rng.choice(self.graph.facts(element)).relation, element] for element in elements]
        operators = [rng.choice(tuple(WRONG_OPERATOR)) for _ in terms[1:]]
        if len(terms) == 2 and operators != ["-"]:
            # Sums and products do not mind the order, so one order stands for both.
            terms.sort(key=lambda term: (self._elements.index(term[1]), term[0]))
        payload = {"terms": terms, "operators": operators}
        values = self._partials(payload)
        habitual = self._partials({"terms": terms, "operators": [WRONG_OPERATOR[operators[0]], *operators[1:]]})
        if any(not 0 <= value <= self.settings.largest for value in values) or self._same(values[-1], habitual[-1]):
            return None
        return payload

    def question(self, payload: Mapping[str, Any]) -> str:
        quantities = [f"{quantity} {element}" for quantity, element in payload["terms"]]
        rest = [f"{operator} {quantity}" for operator, quantity in zip(payload["operators"], quantities[1:], strict=True)]
        return " ".join([self.name, quantities[0], *rest])

    def begin(self, payload: Mapping[str, Any]) -> None:
        return None

    def observe(self, payload: Mapping[str, Any], state: None, call: Call) -> Observed:
        if call.name in QUANTITIES:
            value = self.graph.value(call.arguments["element"], call.name)
            if value is None:
                raise Unreadable
            return Observed(value, float([call.name, call.arguments["element"]] in payload["terms"]))
        a, operator, b = (call.arguments[name] for name in ("a", "operator", "b"))
        terms = [self._value(term) for term in payload["terms"]]
        steps = zip((terms[0], *self._partials(payload)), payload["operators"], terms[1:], strict=False)
        right = any(same_number(str(a), left) and operator == sign and same_number(str(b), value) for left, sign, value in steps)
        return Observed(calculate(a, operator, b, self.settings.modulus), float(right))

    def verify(self, payload: Mapping[str, Any], state: None, answer: str) -> bool:
        return same_number(answer, self._partials(payload)[-1])

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        """Look up every quantity, then calculate from left to right with what was observed."""
        terms, operators = payload["terms"], payload["operators"]
        looked_up = [turn.observation for turn in turns if turn.call.name in QUANTITIES and turn.observation != ERROR]
        results = [turn.observation for turn in turns if turn.call.name == "calculate" and turn.observation != ERROR]
        if len(looked_up) < len(terms):
            quantity, element = terms[len(looked_up)]
            return Call(quantity, {"element": element})
        if len(results) == len(operators):
            return Answer(results[-1])
        left = results[-1] if results else looked_up[0]
        step = len(results)
        return Call("calculate", {"a": _number(left), "operator": operators[step], "b": _number(looked_up[step + 1])})

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return self._elements.index(payload["terms"][0][1]) % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Take a wrong operator in the first calculation, always the same for the right one."""
        if not isinstance(act, Call) or act.name != "calculate" or any(turn.call.name == "calculate" for turn in turns):
            return act
        return Call(act.name, {**act.arguments, "operator": WRONG_OPERATOR[act.arguments["operator"]]})

    def _value(self, term: Sequence[str]) -> float:
        return float(self.graph.value(term[1], term[0]) or 0)

    def _partials(self, payload: Mapping[str, Any]) -> list[float]:
        """The value after every operator."""
        value = self._value(payload["terms"][0])
        partials = []
        for operator, term in zip(payload["operators"], payload["terms"][1:], strict=True):
            other = self._value(term)
            value = {"+": value + other, "-": value - other, "*": value * other}[operator]
            partials.append(value)
        return partials

    def _same(self, value: float, other: float) -> bool:
        if self.settings.modulus:
            value, other = value % self.settings.modulus, other % self.settings.modulus
        return same_number(str(value), other)


def _number(word: str) -> float | int:
    value = float(word)
    return int(value) if value.is_integer() else value
