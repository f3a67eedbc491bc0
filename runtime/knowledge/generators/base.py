"""What a generator is: it draws tasks from a region of a graph, serves the tools to solve them, and says what would be wrong with a
task.

A generator is a world (`worlds/protocol.py`), so that what it makes can be trained on and played in the same spec. Beyond a world
it answers what the checks of self-play ask (`checks.py`): which answers the instruction admits, whether one lookup gives the
answer, and whether there is another way around the evidence.
"""

import json
import random
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator as Coroutine
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ....specs.model import ASK_FOR_ANSWER
from ...worlds.base import ERROR, Answer, Call, Unreadable, draw_distinct, is_heldout, message_of
from ...worlds.protocol import Message, SimulatedUser, Split, Step, Task
from ..graph import GraphStore, Node
from ..records import TaskRecord

WRONG = "none of these"  # an answer that no task of any generator has
COMPACT = "Your context is nearly full. Write down what you know so far and what is left to do; the rest will be forgotten."
NOTES = "Your notes so far:\n"
NOTE_CHARACTERS, MOST_NOTES = 160, 64  # of an observation, in the notes of a scripted solver, which keeps the latest

Acts = Coroutine[Call, str, str]  # yields calls, is sent what each showed, and returns the final answer


@dataclass(frozen=True, slots=True)
class Shown:
    """What a tool answered: the text, the nodes of the graph that it showed, and the step verifier's word where one applies."""

    text: str
    evidence: tuple[str, ...] = ()
    verdict: float | None = None


class TaskGenerator(ABC):
    """Draws tasks from a graph and decides them."""

    name: str
    tools: Sequence[Mapping[str, Any]] = ()  # OpenAI function schemas
    verifiers: Mapping[str, str]  # what each checks, by name
    duplicate_threshold = 0.8  # similarity of instructions from which a task is known already
    ranks_candidates = False  # whether every attempt at a task is played and only the best of those that pass is kept
    fewest_steps = 2  # that make a process more than one lookup; 0 where a task is solved without tools

    def __init__(self, store: GraphStore, settings: Any) -> None:
        self.store, self.settings = store, settings

    @classmethod
    def chosen(cls, settings: Any) -> "type[TaskGenerator]":
        """The generator that settings of this name ask for."""
        return cls

    @classmethod  # noqa: B027  (most corpora are the user's)
    def furnish(cls, store: GraphStore, settings: Any) -> None:
        """Fill a graph that holds nothing to draw from with what the generator invents."""

    @abstractmethod
    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        """A task from a random region; None where the draw led nowhere. It writes nothing into the graph.

        Args:
            region: decides the region alone, so that another task can be drawn from it; left out, `rng` decides that too.
        """

    @abstractmethod
    def serve(self, task: TaskRecord, state: Any, call: Call) -> Shown:
        """Carry out a call.

        Raises:
            Unreadable: it makes no sense here; the model sees `error`.
        """

    @abstractmethod
    def accepts(self, task: TaskRecord, answer: str, state: Any = None) -> bool:
        """The outcome verifier."""

    @abstractmethod
    def admissible(self, task: TaskRecord) -> frozenset[str]:
        """Every answer that meets what the instruction says, by exhaustion of the graph. Empty: no way leads to one."""

    @abstractmethod
    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        """The oracle, which solves a task with its tools alone."""

    def one_lookup(self, task: TaskRecord) -> str | None:
        """How one lookup would give the answer; None where it does not."""
        return None

    def shortcut(self, task: TaskRecord) -> str | None:
        """How the answer comes without the evidence; None where it does not."""
        return None

    def begin(self, task: TaskRecord) -> Any:
        """The state an episode starts in."""
        return None

    def tools_of(self, task: TaskRecord) -> Sequence[Mapping[str, Any]]:
        """The tools of a task, where they are not all of the generator's."""
        return self.tools

    def opening(self, task: TaskRecord) -> list[Message]:
        """The messages before the model's first."""
        return [{"role": "user", "content": task.instruction}]

    def reply(self, task: TaskRecord, state: Any, text: str) -> str | None:
        """What the simulated user answers to a message without a call; None where the message is the final answer."""
        return None

    def brief(self, task: TaskRecord) -> str:
        """Who the user is, what they want and all that they know, for whoever speaks for them in the script's place."""
        raise NotImplementedError(f"{self.name} has no user that could be simulated")

    def cited(self, task: TaskRecord, answer: str) -> tuple[str, ...]:
        """Evidence that an answer itself shows to have been read, where a task is solved without tools."""
        return ()

    def regressive(self, task: TaskRecord, calls: Sequence[tuple[Call, str]]) -> set[int]:
        """Places of calls that led nowhere and that nothing later builds on; each is given with what it showed."""
        return set()

    def described(self, task: TaskRecord) -> list[str]:
        """The region of a task in words, for a proposer that writes the instruction anew."""
        return [f"{node.name}: {node.body}" for node in self.region(task) if node is not None]

    def region(self, task: TaskRecord) -> list[Node | None]:
        """The nodes of a task's evidence; None for what is not in the graph."""
        invented = {node.id: node for node in self.invented(task)}
        return [invented.get(identity) or self.store.node(identity) for identity in task.evidence]

    def invented(self, task: TaskRecord) -> list[Node]:
        """Nodes of a task's evidence that were drawn with it, and that the graph does not hold before the task."""
        return []

    def task_of(self, task: Task) -> TaskRecord:
        """The record that a world's task stands for."""
        return TaskRecord(**{**task.payload, **{key: tuple(task.payload[key]) for key in ("evidence", "verifiers")}})

    def tasks(self, split: Split, count: int, seed: int) -> list[Task]:
        """`count` distinct tasks of a split that pass the checks which need no solver, in an order that the seed decides.

        Raises:
            WorldError: there are fewer.
        """
        from ..checks import task_refusals

        def draw(rng: random.Random) -> tuple[str, TaskRecord] | None:
            task = self.draw(rng)
            return None if task is None else (task.key, task)

        found = draw_distinct(
            self.name, split, count, seed, draw, lambda _, task: self.is_of(task, split) and not task_refusals(self, task)
        )
        return [
            Task(
                world=self.name,
                key=key,
                payload=task.as_json(),
                tools=None if (own := self.tools_of(task)) is self.tools else own,
            )
            for key, task in found.items()
        ]

    def start(self, task: Task) -> "GeneratorEpisode":
        """A new episode of a task."""
        return self.start_record(self.task_of(task))

    def start_record(self, task: TaskRecord) -> "GeneratorEpisode":
        """A new episode of a task as a record."""
        return GeneratorEpisode(self, task)

    def is_of(self, task: TaskRecord, split: str | None) -> bool:
        """Whether a task is of a split, where one is asked for."""
        return split is None or is_heldout(self.name, task.key) == (split == "heldout")

    def demonstrator(self, task: Task, *, seed: int, habit_rate: float, slip_rate: float) -> "ScriptedSolver":
        """The oracle at rates 0; the habit of an imperfect one is to guess."""
        return ScriptedSolver(self, self.task_of(task), seed=seed, slip_rate=slip_rate, guess_rate=habit_rate)


@dataclass(slots=True)
class GeneratorEpisode:
    """A running task of a generator."""

    generator: TaskGenerator
    task: TaskRecord
    steps: list[Step] = field(default_factory=list)
    evidence: list[tuple[str, ...]] = field(default_factory=list)  # nodes that each step showed
    user: SimulatedUser | None = None  # who speaks for the user in place of the generator's script
    dialogue: list[Message] = field(default_factory=list)  # what user and model have said to each other
    done: bool = False
    state: Any = None
    _answer: str = ""

    def __post_init__(self) -> None:
        self.state = self.generator.begin(self.task)

    def opening(self) -> list[Message]:
        """The messages before the model's first."""
        return self.generator.opening(self.task)

    def act(self, message: Message) -> list[Message]:
        """Carry out the calls of a message, let the simulated user reply, or take it as the final answer."""
        if self.done:
            return []
        if calls := message.get("tool_calls"):
            return [self._carry_out(message, call, number) for number, call in enumerate(calls)]
        text = str(message.get("content") or "").strip()
        reply = self._reply(text)
        cited = self.generator.cited(self.task, text) if reply is None else ()
        self._record(message, reply, cited, None, bool(text))
        if reply is not None:
            return [{"role": "user", "content": reply}]
        self.done, self._answer = True, text
        return []

    def outcome(self) -> float:
        """1.0 where the outcome verifier accepts the final answer, else 0.0."""
        return float(self.done and self.generator.accepts(self.task, self._answer, self.state))

    def _reply(self, text: str) -> str | None:
        if self.user is None:
            return self.generator.reply(self.task, self.state, text)
        self.dialogue = self.dialogue or [one for one in self.opening() if one["role"] == "user"]
        self.dialogue.append({"role": "assistant", "content": text})
        reply = self.user.reply(self.generator.brief(self.task), self.dialogue)
        if reply is not None:
            self.dialogue.append({"role": "user", "content": reply})
        return reply

    def _carry_out(self, message: Message, raw: Any, number: int) -> Message:
        readable = True
        try:
            shown = self.generator.serve(self.task, self.state, read_call(self.generator.tools_of(self.task), raw))
        except Unreadable as error:
            shown, readable = Shown(f"{ERROR}: {error}" if str(error) else ERROR), False
        self._record(message, shown.text, shown.evidence, shown.verdict, readable)
        identity = raw.get("id") if isinstance(raw, dict) else None
        return {"role": "tool", "tool_call_id": identity or f"call_{len(self.steps)}_{number}", "content": shown.text}

    def _record(
        self, message: Message, observation: str | None, evidence: tuple[str, ...], verdict: float | None, readable: bool
    ) -> None:
        # The state is what came before; copying it into every step would make an episode's memory quadratic in its length.
        self.steps.append(Step(state={}, action=message, observation=observation, verdict=verdict, readable=readable))
        self.evidence.append(evidence)


class ScriptedSolver:
    """A generator's oracle as a solver, which may be told to slip, or to guess.

    Args:
        slip_rate: probability of a slip at an act: a call that no tool takes, a wrong answer, or the right one too early.
        guess_rate: probability of answering at once.
    """

    def __init__(
        self, generator: TaskGenerator, task: TaskRecord, *, seed: int, slip_rate: float = 0.0, guess_rate: float = 0.0
    ) -> None:
        self._rng = random.Random(f"{seed}:{task.domain}:{task.key}")
        self._task, self._slip_rate = task, slip_rate
        self._guesses = self._rng.random() < guess_rate
        self._acts = generator.solve(task, self._rng)
        self._pending: Call | str | None = None  # an act that a slip postponed
        self._started = False
        self._seen = ""
        self._number = 0
        self._notes: list[str] = []

    def next(self, observations: Sequence[Message]) -> Message:
        """The next message, given the observations since the last one."""
        for text in (str(one["content"]) for one in observations):
            if text == ASK_FOR_ANSWER:
                return {"role": "assistant", "content": "unknown"}
            if text == COMPACT:
                return {"role": "assistant", "content": "\n".join(self._notes[-MOST_NOTES:]) or "Nothing yet."}
            if not text.startswith(NOTES):
                self._see(text)
        if self._guesses:
            return {"role": "assistant", "content": self._rng.choice([self._task.target or WRONG, WRONG])}
        act = self._onward()
        if self._rng.random() < self._slip_rate:
            slip = self._rng.choice(["call", "wrong", "early"])
            if slip != "call":
                return {"role": "assistant", "content": WRONG if slip == "wrong" else self._task.target or WRONG}
            self._pending, act = act, Call("lookup", {"what": "everything"})
        return self._message(act)

    def _see(self, text: str) -> None:
        self._seen = text
        if self._notes and self._notes[-1].endswith(":"):
            self._notes[-1] += f" {text[:NOTE_CHARACTERS]}"

    def _onward(self) -> Call | str:
        if self._pending is not None:
            act, self._pending = self._pending, None
            return act
        try:
            act = self._acts.send(self._seen) if self._started else next(self._acts)
        except StopIteration as end:
            return str(end.value)
        self._started = True
        return act

    def _message(self, act: Call | str) -> Message:
        self._number += 1
        if isinstance(act, str) or not act.name:
            return message_of(Answer(act if isinstance(act, str) else act.arguments["text"]), self._number)
        self._notes.append(f"{act.name} {json.dumps(act.arguments, ensure_ascii=False)[:NOTE_CHARACTERS]}:")
        return message_of(act, self._number)


def say(text: str) -> Call:
    """A message without a call, as an act of an oracle that talks with a simulated user."""
    return Call("", {"text": text})


def numbers_in(text: str) -> list[str]:
    """The numbers that a text says as words of their own, as they are written."""
    return re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)", text)


def readings(text: str, values: Mapping[str, int], ranges: Mapping[str, tuple[int, int]]) -> Iterator[dict[str, float]]:
    """Ways to fill in numbers by what a text says, which need not be what its author meant.

    A value that the text does not say may be any of its range, of which the ends are given; a number that is no value may stand for
    each of them.
    """
    left = Counter(numbers_in(text))
    unsaid = []
    for name, value in values.items():
        if left[str(value)]:
            left[str(value)] -= 1
        else:
            unsaid.append(name)
    for ends in product(*(ranges[name] for name in unsaid)):
        yield {**values, **dict(zip(unsaid, ends, strict=True))}
    for number in left.elements():
        for name in values:
            yield {**values, name: float(number)}


def read_call(tools: Sequence[Mapping[str, Any]], raw: Any) -> Call:
    """A call of an assistant message, checked against the tool's schema as far as names and simple types go.

    Raises:
        Unreadable: no such tool, or arguments that it does not take; the message says what.
    """
    try:
        name, arguments = raw["function"]["name"], raw["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Unreadable("the call is no JSON") from error
    schema = next((one["function"]["parameters"] for one in tools if one["function"]["name"] == name), None)
    if schema is None:
        raise Unreadable(f"there is no tool {str(name)[:64]}")
    if not isinstance(arguments, dict) or not set(schema.get("required", ())) <= set(arguments) <= set(schema["properties"]):
        raise Unreadable(f"{name} takes {', '.join(schema['properties']) or 'nothing'}")
    return Call(name, {key: _typed(value, schema["properties"][key].get("type"), key) for key, value in arguments.items()})


def _typed(value: Any, kind: str | None, name: str) -> Any:
    if kind == "string" and not isinstance(value, (dict, list)):
        return str(value)
    if kind in ("integer", "number"):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise Unreadable(f"{name} is no number") from None
        if not abs(number) < 1e15:
            raise Unreadable(f"{name} is too large")
        return int(number) if number.is_integer() else number
    if kind in ("string", "array") and not isinstance(value, list):
        raise Unreadable(f"{name} is no {kind}")
    return value


def tool(name: str, description: str, required: int | None = None, /, **parameters: str) -> dict[str, Any]:
    """A function schema.

    Args:
        required: how many of the parameters, from the first, must be given; all of them where left out.
        parameters: each as "type: description".
    """
    properties = {}
    for key, text in parameters.items():
        kind, _, what = text.partition(": ")
        properties[key] = {"type": kind, "description": what} | ({"items": {"type": "string"}} if kind == "array" else {})
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:required],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
