"""Science: seed problems written anew, harder and with more to find out, with traces that reason alone or with four tools.

A seed applies one formula to given numbers. Its rewrite corrects a property for temperature, changes units and, where tools are
asked for, takes the property out of the question: an article holds it, a paper holds its coefficient, and a program computes the
result. Traces without tools get both in the question and show their work. A trace is kept only where its answer is right.
Source: Agents-A1 report (arXiv 2606.30616), science data; its four tools are search, visit, code and scholar.
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....specs.generators import ScienceRewritesSettings
from ...worlds.base import Call, Unreadable
from ..graph import GraphStore, Node
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator, numbers_in, readings, tool
from .programs import Programs

CODE_SECONDS, CODE_MIB = 10.0, 256
DEGREES = (5, 89)
DIGITS = 5
_MATERIALS = [
    "basalt",
    "granite",
    "slate",
    "marble",
    "copper",
    "brass",
    "nickel",
    "quartz",
    "glass",
    "resin",
    "cork",
    "amber",
    "wax",
    "clay",
    "chalk",
    "gypsum",
]


@dataclass(frozen=True, slots=True)
class Form:
    """A family of problems: a property of a material, and a formula of it and of the given numbers."""

    name: str
    property: str
    unit: str  # of the property
    range: tuple[int, int]  # of the property
    asks: str  # with the given numbers to fill in
    answer: str  # the unit of the result
    given: Mapping[str, tuple[int, int]]
    formula: str  # in Python, with `p` for the corrected property
    compute: Callable[..., float]


FORMS = (
    Form("delay", "speed of sound", "m/s", (300, 6000), "How many milliseconds does sound need for {km} km of {material}", "ms",
         {"km": (2, 90)}, "km * 1000 / p * 1000", lambda p, km: km * 1000 / p * 1000),
    Form("mass", "density", "kg/m3", (200, 9000), "What mass in kg have {litres} L of {material}", "kg",
         {"litres": (3, 800)}, "litres / 1000 * p", lambda p, litres: litres / 1000 * p),
    Form("heat", "specific heat", "J/(kg K)", (150, 4000), "How many kJ raise {grams} g of {material} by {kelvin} K", "kJ",
         {"grams": (50, 9000), "kelvin": (2, 90)}, "grams / 1000 * p * kelvin / 1000",
         lambda p, grams, kelvin: grams / 1000 * p * kelvin / 1000),
    Form("resistance", "resistivity", "nOhm m", (15, 900),
         "What resistance in mOhm has {metres} m of {material} of {mm2} mm2", "mOhm",
         {"metres": (2, 400), "mm2": (1, 25)}, "p * 1e-9 * metres / (mm2 * 1e-6) * 1000",
         lambda p, metres, mm2: p * 1e-9 * metres / (mm2 * 1e-6) * 1000),
)  # fmt: skip
BY_NAME = {form.name: form for form in FORMS}


class ScienceRewrites(TaskGenerator):
    """Numbers with a unit, from a formula, an article and a paper."""

    name = "science_rewrites"
    verifiers: Mapping[str, str] = {"outcome": "the number is right to three digits", "code": "the program prints the right number"}
    duplicate_threshold = 1.01  # problems share their words; what sets them apart are materials and numbers

    def __init__(self, store: GraphStore, settings: ScienceRewritesSettings) -> None:
        super().__init__(store, settings)
        self.fewest_steps = 3 if settings.tools else 0
        self.tools = _TOOLS if settings.tools else ()
        self._programs = Programs(seconds=CODE_SECONDS, memory_mib=CODE_MIB, characters=4000)

    @classmethod
    def furnish(cls, store: GraphStore, settings: ScienceRewritesSettings) -> None:
        if next(store.nodes("evidence"), None) is not None:
            return
        rng = random.Random(f"library:{settings.corpus_seed}")
        for number in range(settings.materials):
            material = f"{rng.choice(_MATERIALS)} {100 + number}"
            for form in FORMS:
                value, coefficient = rng.randint(*form.range), rng.randint(2, 60) / 10_000
                article = (
                    f"Measured in the collection of samples. At 20 degrees the {form.property} of {material} is "
                    f"{value} {form.unit}. How it changes with temperature is another matter."
                )
                paper = (
                    f"Abstract. We follow the {form.property} of {material} between 0 and 90 degrees. It changes by a factor of "
                    f"1 + {coefficient} (T - 20), with T in degrees. The absolute value is taken from the collection."
                )
                place = store.add("evidence", f"{form.property} of {material}", article)
                store.link(
                    "transition", place, store.add("evidence", f"paper: {form.property} of {material}", paper), anchor="cited by"
                )
        store.commit()

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        region = region or rng
        form = region.choice(FORMS)
        found = self._materials(form, set())
        if not found:
            return None
        material = region.choice(found)
        given = {name: rng.randint(*bounds) for name, bounds in form.given.items()}
        degrees = rng.choice([one for one in range(DEGREES[0], DEGREES[1] + 1) if abs(one - 20) > 4])
        evidence = [node for kind in self._sources(form, material) for node in kind]
        answers = self._results(form, material, given, degrees)
        if len(evidence) != 2 or len(answers) != 1:
            return None
        asks = form.asks.format(**given, material=f"sample {material}")
        if self.settings.tools:
            where = "Take its property from the collection and its coefficient from the paper on it."
        else:
            where = " ".join(f"[{number}] {node.body}" for number, node in enumerate(evidence, start=1))
        task = TaskRecord(
            instruction=f"{asks} at {degrees} degrees? {where} Answer with the number of {form.answer}.",
            domain=self.name,
            key=f"{self.settings.tools} {asks} at {degrees}",
            target=answers.pop(),
            evidence=tuple(node.id for node in evidence),
            verifiers=("outcome",),
            payload={"form": form.name, "material": material, "given": given, "degrees": degrees},
        )
        # Now and then a result, or what there is to look up, is one of the given numbers.
        return None if self.shortcut(task) or self.one_lookup(task) else task

    def serve(self, task: TaskRecord, state: Any, call: Call) -> Shown:
        if call.name == "code":
            program = call.arguments["program"]
            if len(program) > 20_000:
                raise Unreadable("the program is too long")
            output = self._programs.output(program).strip()
            return Shown(output, verdict=float(_near(output, task.target or "")))
        query = call.arguments.get("query") or call.arguments.get("title") or ""
        if call.name == "visit":
            node = next(self.store.nodes("evidence", query), None)
            if node is None or query.startswith("paper: "):
                raise Unreadable("there is no such article")
            return self._shown(task, node)
        papers = call.name == "scholar"
        found = [node for node in self.store.find(query, 20) if node.name.startswith("paper: ") == papers]
        if not found:
            return Shown("nothing found")
        if papers:
            return self._shown(task, found[0])
        return Shown("\n".join(node.name for node in found[:5]))

    def accepts(self, task: TaskRecord, answer: str, state: Any = None) -> bool:
        return _near(answer.rpartition("Answer:")[2], task.target or "")

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        """The results by what the question says: of every sample that it may name, with every number that it may give."""
        form, question = BY_NAME[task.payload["form"]], task.instruction
        for node in map(self.store.node, task.evidence):
            question = question.replace(node.body if node else "", " ")
        question = re.sub(r"\[\d+\]", " ", question)
        name = task.payload["material"]
        named = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question)
        materials = [name] if named else self._materials(form, set(question.split()))
        question = question.replace(name, " ")
        values, ranges = {**task.payload["given"], "degrees": task.payload["degrees"]}, {**form.given, "degrees": DEGREES}
        return frozenset(
            answer
            for said in readings(question, values, ranges)
            for material in materials
            for answer in self._results(form, material, {one: said[one] for one in form.given}, said["degrees"])
        )

    def one_lookup(self, task: TaskRecord) -> str | None:
        for identity in task.evidence:
            node = self.store.node(identity)
            if node is not None and any(_near(number, task.target or "") for number in numbers_in(node.body)):
                return "one document holds the answer"
        return None

    def shortcut(self, task: TaskRecord) -> str | None:
        if any(_near(number, task.target or "") for number in numbers_in(task.instruction)):
            return "the question holds the answer"
        if self.settings.tools and any(
            node is not None and _value_in(node.body) in numbers_in(task.instruction)
            for node in map(self.store.node, task.evidence)
        ):
            return "the question holds what it asks to look up"
        return None

    def cited(self, task: TaskRecord, answer: str) -> tuple[str, ...]:
        if self.settings.tools:
            return ()
        nodes = [self.store.node(identity) for identity in task.evidence]
        return tuple(node.id for node in nodes if node is not None and _value_in(node.body) in numbers_in(answer))

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        form, degrees = BY_NAME[task.payload["form"]], task.payload["degrees"]
        material = task.payload["material"]
        if self.settings.tools:
            titles = yield Call("search", {"query": f"{form.property} of {material}"})
            wanted = f"{form.property} of {material}"
            article = yield Call("visit", {"title": wanted if wanted in titles.splitlines() else titles.splitlines()[0]})
            paper = yield Call("scholar", {"query": f"{form.property} of {material} temperature"})
        else:
            article, paper = task.instruction.split("[1]")[1].split("[2]")
        value, coefficient = _value_in(article), _value_in(paper)
        names = "; ".join(f"{name} = {number}" for name, number in task.payload["given"].items())
        corrected = f"{value} * (1 + {coefficient} * ({degrees} - 20))"
        if self.settings.tools:
            program = f"{names}\np = {corrected}\nprint(f'{{{form.formula}:.{DIGITS}g}}')"
            return (yield Call("code", {"program": program})).strip()
        result = _show(form.compute(_corrected(float(value), float(coefficient), degrees), **task.payload["given"]))
        return (
            f"At 20 degrees the {form.property} is {value} {form.unit} [1]; its coefficient is {coefficient} [2].\n"
            f"At {degrees} degrees p = {corrected} = {_show(_corrected(float(value), float(coefficient), degrees))} {form.unit}.\n"
            f"With {names}: {form.formula} = {result}.\nAnswer: {result}"
        )

    def _results(self, form: Form, material: str, given: Mapping[str, float], degrees: float) -> set[str]:
        """The results for a sample, one for each pair of an article and a paper on it."""
        articles, papers = ([float(_value_in(node.body)) for node in kind] for kind in self._sources(form, material))
        return {_show(form.compute(_corrected(value, slope, degrees), **given)) for value in articles for slope in papers}

    def _sources(self, form: Form, material: str) -> tuple[list[Node], list[Node]]:
        """Articles and papers on a sample."""
        name = f"{form.property} of {material}"
        return [*self.store.nodes("evidence", name)], [*self.store.nodes("evidence", f"paper: {name}")]

    def _materials(self, form: Form, words: set[str]) -> list[str]:
        """The samples that words may mean: those of a kind that is among them, or any."""
        prefix = f"{form.property} of "
        query = "SELECT name FROM nodes WHERE kind = 'evidence' AND name LIKE ? ORDER BY place"
        names = [name.removeprefix(prefix) for (name,) in self.store.sql.execute(query, (f"{prefix}%",))]
        return [name for name in names if name.split()[0] in words] or names

    def _shown(self, task: TaskRecord, node: Node) -> Shown:
        return Shown(node.body, (node.id,), float(node.id in task.evidence))


_TOOLS = (
    tool("search", "Find articles. Returns titles.", query="string: Words to look for."),
    tool("visit", "Read an article.", title="string: Title of the article."),
    tool("scholar", "Find a paper. Returns its abstract.", query="string: Words to look for."),
    tool("code", "Run a Python program. Returns what it prints.", program="string: The program."),
)


def _corrected(value: float, coefficient: float, degrees: float) -> float:
    return value * (1 + coefficient * (degrees - 20))


def _value_in(text: str) -> str:
    """The number that a document is there for."""
    found = re.search(r"1 \+ (\d[\d.]*) \(T|is (\d[\d.]*\d|\d) ", text)
    return (found[1] or found[2]) if found else "nan"


def _show(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def _near(answer: str, target: str) -> bool:
    try:
        found, right = float(answer.split()[0]), float(target)
    except (ValueError, IndexError):
        return False
    return math.isfinite(found) and math.isclose(found, right, rel_tol=1e-3)
