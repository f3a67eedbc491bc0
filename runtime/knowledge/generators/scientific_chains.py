"""Scientific tools: chains of typed functions, each taking what earlier ones returned.

Functions of chemistry and physics form a dependency graph over quantities. A task is a connected subgraph that ends in one
quantity: the given values enter at its leaves, and every other argument is the result of another function. The tools alone hold
the constants, so no step can be skipped.
Source: Agents-A1 report (arXiv 2606.30616), where scientific tool calling is part of the tool data.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....specs.generators import ScientificChainsSettings
from ...worlds.base import Call, Unreadable
from ..graph import GraphStore
from ..importers import add_tool
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator, numbers_in, readings, tool

# Standard atomic weights, abridged to four digits where they have more (IUPAC 2021).
MASSES = {
    "H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "F": 18.998, "Na": 22.990, "Mg": 24.305, "Al": 26.982, "Si": 28.085,
    "P": 30.974, "S": 32.06, "Cl": 35.45, "K": 39.098, "Ca": 40.078, "Fe": 55.845, "Cu": 63.546, "Zn": 65.38, "Ag": 107.87,
}  # fmt: skip
COMPOUNDS = (
    "H2O", "CO2", "NaCl", "CaCO3", "H2SO4", "C6H12O6", "NH3", "CH4", "C2H5OH", "KCl", "MgO", "Al2O3", "SiO2", "FeS2", "CuSO4",
    "ZnO", "AgCl", "Na2CO3", "KNO3", "HCl", "C3H8", "CaCl2", "NaOH", "H3PO4", "C8H10N4O2", "Fe2O3", "MgCl2", "N2O", "SO2", "C2H4O2",
)  # fmt: skip
GAS, BOILING, DIGITS = 8.314, 0.512, 4  # J/(mol K); K kg/mol of water (Ebullioscopic constant); significant digits of a result


@dataclass(frozen=True, slots=True)
class Function:
    """A tool: the quantities it takes and the one it returns."""

    name: str
    says: str
    takes: tuple[str, ...]
    gives: str
    compute: Callable[..., float]


def molar_mass(formula: str) -> float:
    """g/mol of a formula without brackets."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    if "".join(element + count for element, count in parts) != formula or not {element for element, _ in parts} <= set(MASSES):
        raise Unreadable("no formula of known elements")
    return sum(MASSES[element] * int(count or 1) for element, count in parts)


FUNCTIONS = (
    Function("molar_mass", "Molar mass in g/mol.", ("formula",), "molar_mass", molar_mass),
    Function("amount", "Amount in mol.", ("mass", "molar_mass"), "amount", lambda mass, molar: mass / molar),
    Function("molarity", "Concentration in mol/L.", ("amount", "volume"), "molarity", lambda amount, volume: amount / volume),
    Function("dilute", "Concentration after dilution.", ("molarity", "factor"), "diluted", lambda one, factor: one / factor),
    Function("osmotic", "Osmotic pressure in kPa.", ("diluted", "kelvin"), "pressure", lambda one, kelvin: one * GAS * kelvin),
    Function("gas_volume", "Volume of an ideal gas in L.", ("amount", "kelvin", "kilopascal"), "gas",
             lambda amount, kelvin, pressure: amount * GAS * kelvin / pressure),
    Function("molality", "Molality in mol/kg.", ("amount", "solvent"), "molality", lambda amount, solvent: amount / solvent),
    Function("boiling_rise", "Rise of water's boiling point in K.", ("molality",), "rise", lambda molality: molality * BOILING),
)  # fmt: skip
BY_NAME = {function.name: function for function in FUNCTIONS}
MAKES = {function.gives: function for function in FUNCTIONS}
GIVEN = {
    "mass": ("a mass of {} g", (5, 900)),
    "volume": ("a volume of {} L", (1, 40)),
    "factor": ("a dilution by {}", (2, 50)),
    "kelvin": ("a temperature of {} K", (250, 400)),
    "kilopascal": ("a pressure of {} kPa", (50, 300)),
    "solvent": ("{} kg of water", (1, 30)),
}
TARGETS = {"molarity": "mol/L", "diluted": "mol/L", "pressure": "kPa", "gas": "L", "molality": "mol/kg", "rise": "K"}
WHAT = {
    "molarity": "concentration",
    "diluted": "concentration after dilution",
    "pressure": "osmotic pressure after dilution",
    "gas": "volume of the gas",
    "molality": "molality",
    "rise": "rise of the boiling point",
}


class ScientificChains(TaskGenerator):
    """Compute one quantity through others."""

    name = "scientific_chains"
    verifiers: Mapping[str, str] = {"outcome": "the number is right to three digits", "call": "the call is one of the chain's"}
    duplicate_threshold = 1.01  # problems share their words; what sets them apart are the numbers
    fewest_steps = 3

    def __init__(self, store: GraphStore, settings: ScientificChainsSettings) -> None:
        super().__init__(store, settings)
        self.tools = tuple(_schema(function) for function in FUNCTIONS)
        self._nodes = {node.name: node.id for node in store.nodes("action")}

    @classmethod
    def furnish(cls, store: GraphStore, settings: ScientificChainsSettings) -> None:
        for function in FUNCTIONS:
            action = add_tool(store, _schema(function))
            store.link("produces", action, store.add("entity", function.gives))
        store.commit()

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        target = (region or rng).choice(tuple(TARGETS))
        chain = chain_of(target)
        if len(chain) < self.settings.fewest_calls:
            return None
        wanted = [quantity for name in chain for quantity in BY_NAME[name].takes if quantity in GIVEN]
        given: dict[str, Any] = {"formula": rng.choice(COMPOUNDS)}
        given |= {quantity: rng.randint(*GIVEN[quantity][1]) for quantity in dict.fromkeys(wanted)}
        words = " and ".join(GIVEN[quantity][0].format(value) for quantity, value in given.items() if quantity in GIVEN)
        instruction = (
            f"What is the {WHAT[target]} in {TARGETS[target]} for {given['formula']}, given {words}? Answer with the number."
        )
        task = TaskRecord(
            instruction=instruction,
            domain=self.name,
            key=instruction,
            target=_show(_evaluate(target, given)),
            evidence=tuple(self._nodes[name] for name in chain),
            verifiers=("outcome",),
            payload={"given": given, "quantity": target},
        )
        # Now and then a result is one of the given numbers.
        return None if self.shortcut(task) else task

    def begin(self, task: TaskRecord) -> dict[str, float]:
        return {}

    def serve(self, task: TaskRecord, state: Any, call: Call) -> Shown:
        function = BY_NAME[call.name]
        try:
            value = function.compute(*(call.arguments[name] for name in function.takes))
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            raise Unreadable(f"{call.name} takes {', '.join(function.takes)}") from error
        return Shown(_show(value), self._earned(task, call), float(call.name in self._chain(task)))

    def accepts(self, task: TaskRecord, answer: str, state: Any = None) -> bool:
        return _near(answer, task.target or "")

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        """The results by what the question says: of every quantity and compound that it may mean, with every number it may give."""
        asked, given = task.payload["quantity"], task.payload["given"]
        named = re.search(rf"(?<!\w){re.escape(given['formula'])}(?!\w)", task.instruction) if "formula" in given else None
        formulas = [given["formula"]] if named else COMPOUNDS
        said = WHAT[asked] in task.instruction
        quantities = [asked] if said else [one for one, unit in TARGETS.items() if unit == TARGETS[asked]]
        numbers = {name: value for name, value in given.items() if name in GIVEN}
        return frozenset(
            _show(_evaluate(quantity, {"formula": formula, **known}))
            for quantity in quantities
            if _leaves(quantity) <= set(given)
            for formula in formulas
            for known in readings(task.instruction, numbers, {name: bounds for name, (_, bounds) in GIVEN.items()})
        )

    def one_lookup(self, task: TaskRecord) -> str | None:
        return "one call gives the answer" if len(self._chain(task)) < 2 else None

    def shortcut(self, task: TaskRecord) -> str | None:
        held = any(_near(number, task.target or "") for number in numbers_in(task.instruction))
        return "the question holds the answer" if held else None

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        known = dict(task.payload["given"])
        shown = "unknown"
        for name in self._chain(task):
            function = BY_NAME[name]
            if any(quantity not in known for quantity in function.takes):
                return "unknown"
            shown = yield Call(name, {quantity: known[quantity] for quantity in function.takes})
            known[function.gives] = _number(shown)
        return shown

    def _chain(self, task: TaskRecord) -> list[str]:
        return chain_of(task.payload["quantity"])

    def _earned(self, task: TaskRecord, call: Call) -> tuple[str, ...]:
        """A tool counts as consulted where its arguments are those of the chain: given, or what the function before returned."""
        if call.name not in self._chain(task):
            return ()
        for quantity, value in call.arguments.items():
            right = task.payload["given"].get(quantity)
            right = _evaluate(quantity, task.payload["given"]) if right is None and quantity in MAKES else right
            if right is None or not (value == right or _near(str(value), str(right))):
                return ()
        return (self._nodes[call.name],)


def chain_of(quantity: str) -> list[str]:
    """The functions that a quantity needs, in an order in which they can be called."""
    if quantity not in MAKES:
        return []
    function = MAKES[quantity]
    return list(dict.fromkeys([*(name for taken in function.takes for name in chain_of(taken)), function.name]))


def _leaves(quantity: str) -> set[str]:
    """What has to be given to compute a quantity."""
    return {one for name in chain_of(quantity) for one in BY_NAME[name].takes if one not in MAKES}


def _evaluate(quantity: str, given: Mapping[str, Any]) -> float:
    """A quantity, every result rounded as the tools show it."""
    known = dict(given)
    value = math.nan
    for name in chain_of(quantity):
        function = BY_NAME[name]
        value = _number(_show(function.compute(*(known[one] for one in function.takes))))
        known[function.gives] = value
    return value


def _schema(function: Function) -> dict[str, Any]:
    parameters = {name: f"{'string' if name == 'formula' else 'number'}: The {name.replace('_', ' ')}." for name in function.takes}
    return tool(function.name, function.says, **parameters)


def _show(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _near(answer: str, target: str) -> bool:
    found, right = _number(answer.split()[0] if answer.split() else ""), _number(target)
    return math.isfinite(found) and math.isclose(found, right, rel_tol=1e-3)
