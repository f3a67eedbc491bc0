"""Engineering: write a small program that passes its tests.

The corpus is a graph of values: `3 --increment--> 4 --double--> 8`; a program is a walk in it. Programs are written in `steps`, a
total language of one-word steps that is interpreted here (no loops, bounded length, so there is nothing to isolate), or in Python,
which runs in the sandbox only. Expected values never enter the sandbox.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...specs.worlds import EngineeringSettings
from .base import Act, Answer, Call, GraphWorld, Observed, Turn, Unreadable
from .graph import Action, Fact, KnowledgeActionGraph
from .names import PROGRAMS, names
from .sandbox import require_sandbox, run_python

MOST_STEPS = 64
# What each step does to x, as Python; every result is taken modulo the modulus m.
OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "increment": ("x + 1", lambda x, m: x + 1),
    "double": ("2 * x", lambda x, m: 2 * x),
    "negate": ("-x", lambda x, m: -x),
    "halve": ("x // 2", lambda x, m: x // 2),
    "decrement": ("x - 1", lambda x, m: x - 1),
    "triple": ("3 * x", lambda x, m: 3 * x),
    "square": ("x * x", lambda x, m: x * x),
    "jump": ("x + 7", lambda x, m: x + 7),
}


class EngineeringWorld(GraphWorld):
    """Find the steps that turn one value into another."""

    name = "engineering"

    def __init__(self, settings: EngineeringSettings) -> None:
        """Build the graph.

        Raises:
            UserError: Python programs cannot be isolated here, and the settings do not consent to that (exit 5).
        """
        if settings.language == "python":
            require_sandbox(settings.allow_unsandboxed)
        self.settings = settings
        self._names = names(PROGRAMS, settings.names)
        self._operations = tuple(OPERATIONS)[: settings.operations]
        program = {
            "type": "array",
            "items": {"type": "string", "enum": list(self._operations)},
            "description": "Its steps in order.",
        }
        if settings.language == "python":
            program = {"type": "string", "description": "Python source that defines the function."}
        self.graph = KnowledgeActionGraph(
            [
                Fact(subject=str(value), relation=operation, value=str(self._apply(operation, value)))
                for value in range(settings.modulus)
                for operation in self._operations
            ],
            actions=(
                Action(
                    name="run",
                    description="Run a program on the inputs of the examples.",
                    parameters={"program": program},
                    observation="its outputs",
                ),
            ),
            verifiers={"outcome": "the program passes every test", "run": "the program passes the examples"},
        )
        self.word_classes = (self._operations,)

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        path = self.graph.walk(rng, rng.choice(self.graph.subjects), self.settings.length)
        if path is None:
            return None
        program = [fact.relation for fact in path]
        start = int(path[0].subject)
        if self.settings.trace and self.settings.examples == 1 and not self.settings.hidden_tests:
            # Only this way matters: of the steps that do the same here, the first stands for all.
            program = [next(one.relation for one in self.graph.facts(fact.subject) if one.value == fact.value) for fact in path]
        others = self.settings.examples - 1 + self.settings.hidden_tests
        values = [value for value in range(self.settings.modulus) if value != start]
        if others > len(values):
            return None
        return {"name": rng.choice(self._names), "inputs": [start, *rng.sample(values, others)], "program": program}

    def question(self, payload: Mapping[str, Any]) -> str:
        examples = []
        for number, value in enumerate(payload["inputs"][: self.settings.examples]):
            way = [value, *self._values(payload["program"], value)]
            shown = way if number == 0 and self.settings.trace else [way[0], way[-1]]
            examples.append(" to ".join(str(one) for one in shown))
        return f"{self.name} {payload['name']} {' and '.join(examples)}"

    def begin(self, payload: Mapping[str, Any]) -> None:
        return None

    def observe(self, payload: Mapping[str, Any], state: None, call: Call) -> Observed:
        inputs = payload["inputs"][: self.settings.examples]
        outputs = self._execute(payload, call.arguments["program"], inputs)
        if isinstance(outputs, str):
            return Observed(outputs, 0.0)
        return Observed(" ".join(str(output) for output in outputs), float(outputs == self._expected(payload, inputs)))

    def verify(self, payload: Mapping[str, Any], state: None, answer: str) -> bool:
        program = answer if self.settings.language == "python" else answer.split()
        try:
            return self._execute(payload, program, payload["inputs"]) == self._expected(payload, payload["inputs"])
        except Unreadable:
            return False

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        """Run the program until its outputs are right, then answer with it."""
        expected = " ".join(str(value) for value in self._expected(payload, payload["inputs"][: self.settings.examples]))
        if turns and turns[-1].observation == expected:
            return Answer(self._written(payload["name"], payload["program"]))
        program = payload["program"] if self.settings.language == "steps" else self._written(payload["name"], payload["program"])
        return Call("run", {"program": program})

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return payload["inputs"][0] % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Hand in the program without its last step."""
        return Answer(self._written(payload["name"], payload["program"][:-1])) if isinstance(act, Answer) else act

    def slip(self, act: Act, rng: random.Random) -> Act:
        if self.settings.language == "steps":
            return super().slip(act, rng)
        source = act.text if isinstance(act, Answer) else act.arguments["program"]
        lines = source.split("\n")
        body = [self._line(operation) for operation in self._operations]
        place = rng.choice([index for index, line in enumerate(lines) if line in body])
        lines[place] = rng.choice([line for line in body if line != lines[place]])
        changed = "\n".join(lines)
        return Answer(changed) if isinstance(act, Answer) else Call("run", {"program": changed})

    def _apply(self, operation: str, value: int) -> int:
        return OPERATIONS[operation][1](value, self.settings.modulus) % self.settings.modulus

    def _values(self, program: Sequence[str], value: int) -> list[int]:
        """The value after every step."""
        values = []
        for operation in program:
            value = self._apply(operation, value)
            values.append(value)
        return values

    def _expected(self, payload: Mapping[str, Any], inputs: Sequence[int]) -> list[int]:
        return [self._values(payload["program"], value)[-1] for value in inputs]

    def _line(self, operation: str) -> str:
        return f"    x = ({OPERATIONS[operation][0]}) % {self.settings.modulus}"

    def _written(self, name: str, program: Sequence[str]) -> str:
        if self.settings.language == "steps":
            return " ".join(program)
        return "\n".join([f"def {name}(x):", *(self._line(operation) for operation in program), "    return x"])

    def _execute(self, payload: Mapping[str, Any], program: Any, inputs: Sequence[int]) -> list[int] | str:
        """The outputs, or a word that says why there are none.

        Raises:
            Unreadable: a program in `steps` that is empty, too long or has an unknown step.
        """
        if self.settings.language == "python":
            return self._execute_python(payload["name"], program, inputs)
        if not 0 < len(program) <= MOST_STEPS or any(operation not in self._operations for operation in program):
            raise Unreadable
        return [self._values(program, value)[-1] for value in inputs]

    def _execute_python(self, name: str, source: str, inputs: Sequence[int]) -> list[int] | str:
        call = f"\nimport json\nprint('\\n' + json.dumps([{name}(x) for x in {list(inputs)!r}]))\n"
        settings = self.settings
        ran = run_python(
            source + call, seconds=settings.seconds, memory_mib=settings.memory_mib, allow_unsandboxed=settings.allow_unsandboxed
        )
        lines = ran.output.strip().split("\n")
        if ran.status != "ok":
            return lines[-1][:200] if ran.status == "failed" and lines[-1] else ran.status
        try:
            outputs = json.loads(lines[-1])
        except (ValueError, RecursionError):
            return "failed"
        return outputs if isinstance(outputs, list) else "failed"
