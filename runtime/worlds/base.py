"""What the built-in worlds share: drawing distinct tasks, reading actions, recording steps, and imperfect demonstrators.

A world is a subclass of `GraphWorld` that says how a task is drawn from its graph, how it is asked, what the tools answer, who
wins, and how an oracle solves it. Its wrong habit is a fixed mistake on the harder half of the tasks: the same task always gets
the same mistake, so a model that imitates it keeps it under greedy decoding, which random slips alone would not do.
"""

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .graph import KnowledgeActionGraph
from .protocol import Message, Split, Step, Task, WorldError

HELDOUT_MODULUS = 4  # one task in four is held out
Drawn = TypeVar("Drawn")
PATIENCE = 20_000  # proposals without a new task after which a split counts as exhausted
ERROR = "error"  # the observation after a call that cannot be carried out


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer; it ends the episode."""

    text: str


Act = Call | Answer


@dataclass(frozen=True, slots=True)
class Turn:
    """A call and what it showed."""

    call: Call
    observation: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What a tool answered, and the step verifier's outcome where one applies."""

    text: str
    verdict: float | None = None


class Unreadable(Exception):
    """A call that the world cannot carry out. It becomes an observation."""


def is_heldout(world: str, key: str) -> bool:
    """Whether a task is kept for evaluation."""
    return int(hashlib.sha256(f"{world}:{key}".encode()).hexdigest(), 16) % HELDOUT_MODULUS == 0


def draw_distinct(
    world: str,
    split: Split,
    count: int,
    seed: int,
    draw: Callable[[random.Random], tuple[str, Drawn] | None],
    fits: Callable[[str, Drawn], bool],
) -> dict[str, Drawn]:
    """`count` tasks by key, in the order in which they were drawn.

    Args:
        draw: a task and its key; None where the draw led nowhere.
        fits: whether a task that is not there yet is wanted.

    Raises:
        WorldError: there are fewer.
    """
    rng = random.Random(f"{world}:{split}:{seed}")
    found: dict[str, Drawn] = {}
    fruitless = 0
    while len(found) < count:
        if fruitless == PATIENCE:
            raise WorldError(
                f"world `{world}` has {len(found)} distinct {split} tasks at these settings, and {count} are asked for",
                fix="ask for fewer, or enlarge the world's settings, or its graph where it has one",
            )
        fruitless += 1
        drawn = draw(rng)
        if drawn is not None and drawn[0] not in found and fits(*drawn):
            found[drawn[0]] = drawn[1]
            fruitless = 0
    return found


class GraphWorld(ABC):
    """A world that draws from a knowledge-action graph."""

    name: str
    graph: KnowledgeActionGraph
    word_classes: Sequence[Sequence[str]]  # a slip replaces a word by another of its class

    @property
    def tools(self) -> list[dict[str, Any]]:
        """OpenAI function schemas, one per action of the graph."""
        return [action.schema() for action in self.graph.actions]

    @abstractmethod
    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        """A random task's payload, in canonical form, drawn from the graph; None where the draw led nowhere."""

    @abstractmethod
    def question(self, payload: Mapping[str, Any]) -> str:
        """The user's message. It names the task: two tasks that ask the same are the same."""

    @abstractmethod
    def begin(self, payload: Mapping[str, Any]) -> Any:
        """The state an episode starts in; None where there is none."""

    @abstractmethod
    def observe(self, payload: Mapping[str, Any], state: Any, call: Call) -> Observed:
        """Carry out a call whose arguments have the right types.

        Raises:
            Unreadable: the call makes no sense here.
        """

    @abstractmethod
    def verify(self, payload: Mapping[str, Any], state: Any, answer: str) -> bool:
        """The outcome verifier."""

    @abstractmethod
    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        """The oracle's next act."""

    @abstractmethod
    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        """Whether the task is in the half that the wrong habit spoils."""

    @abstractmethod
    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """What the wrong habit makes of the oracle's act."""

    def slip(self, act: Act, rng: random.Random) -> Act:
        """The act with one word replaced by another of its class."""
        return slip(act, self.word_classes, rng)

    def evidence(self, payload: Mapping[str, Any]) -> list[str]:
        """What the model is given to know at the start, for the step records."""
        return [self.question(payload)]

    def tasks(self, split: Split, count: int, seed: int) -> list[Task]:
        """`count` distinct tasks of a split, in an order that the seed decides.

        Raises:
            WorldError: there are fewer.
        """

        def draw(rng: random.Random) -> tuple[str, dict[str, Any]] | None:
            payload = self.draw(rng)
            return None if payload is None else (self.question(payload), payload)

        found = draw_distinct(
            self.name, split, count, seed, draw, lambda key, _: is_heldout(self.name, key) == (split == "heldout")
        )
        return [Task(world=self.name, key=key, payload=payload) for key, payload in found.items()]

    def start(self, task: Task) -> "GraphEpisode":
        """A new episode of a task."""
        return GraphEpisode(self, task)

    def demonstrator(self, task: Task, *, seed: int, habit_rate: float, slip_rate: float) -> "Demonstrator":
        """The oracle at rates 0; else one that follows the habit on some hard tasks and slips now and then."""
        return Demonstrator(self, task, seed=seed, habit_rate=habit_rate, slip_rate=slip_rate)


@dataclass(slots=True)
class GraphEpisode:
    """A running task of a built-in world."""

    world: GraphWorld
    task: Task
    steps: list[Step] = field(default_factory=list)
    done: bool = False
    _state: Any = None
    _succeeded: bool = False
    _observations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._state = self.world.begin(self.task.payload)

    def opening(self) -> list[Message]:
        """The user's message."""
        return [{"role": "user", "content": self.world.question(self.task.payload)}]

    def act(self, message: Message) -> list[Message]:
        """Carry out the calls of a message, or take it as the final answer. After the end nothing happens any more."""
        if self.done:
            return []
        calls = message.get("tool_calls")
        if calls and isinstance(calls, list):
            return [self._carry_out(message, call) for call in calls]
        self.done = True
        content = message.get("content")
        answer = content if isinstance(content, str) else ""
        self._succeeded = self.world.verify(self.task.payload, self._state, answer.strip())
        self._record(message, None, None, bool(answer.strip()))
        return []

    def outcome(self) -> float:
        """1.0 where the outcome verifier accepted the final answer, else 0.0."""
        return float(self._succeeded)

    def _carry_out(self, message: Message, raw: Any) -> Message:
        readable = True
        try:
            observed = self.world.observe(self.task.payload, self._state, read_call(self.world.graph, raw))
        except Unreadable:
            observed, readable = Observed(ERROR), False
        self._record(message, observed.text, observed.verdict, readable)
        self._observations.append(observed.text)
        identity = raw.get("id") if isinstance(raw, dict) else None
        return {"role": "tool", "tool_call_id": identity or f"call_{len(self._observations)}", "content": observed.text}

    def _record(self, message: Message, observation: str | None, verdict: float | None, readable: bool) -> None:
        state = {"evidence": self.world.evidence(self.task.payload), "observations": list(self._observations)}
        self.steps.append(Step(state=state, action=message, observation=observation, verdict=verdict, readable=readable))


class Demonstrator:
    """A solver that knows the way, and may be told to stray from it."""

    def __init__(self, world: GraphWorld, task: Task, *, seed: int, habit_rate: float, slip_rate: float) -> None:
        self._world, self._payload = world, task.payload
        self._rng = random.Random(f"{seed}:{task.world}:{task.key}")
        self._slip_rate = slip_rate
        self._follows_habit = self._rng.random() < habit_rate and world.is_hard(task.payload)
        self._turns: list[Turn] = []
        self._last_call: Call | None = None

    def next(self, observations: Sequence[Message]) -> Message:
        """The next message, given the observations since the last one."""
        if self._last_call is not None and observations:
            self._turns.append(Turn(self._last_call, str(observations[-1]["content"])))
        act = self._world.solve(self._payload, self._turns)
        if self._follows_habit:
            act = self._world.habit(self._payload, self._turns, act)
        if self._rng.random() < self._slip_rate:
            act = self._world.slip(act, self._rng)
        self._last_call = act if isinstance(act, Call) else None
        return message_of(act, len(self._turns) + 1)


def message_of(act: Act, number: int) -> Message:
    """An act as an assistant message. `number` counts the calls of the episode from 1."""
    if isinstance(act, Answer):
        return {"role": "assistant", "content": act.text}
    function = {"name": act.name, "arguments": json.dumps(act.arguments)}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}]}


def read_call(graph: KnowledgeActionGraph, raw: Any) -> Call:
    """A call of an assistant message, its arguments checked against the tool's schema.

    Numbers may be written as text and single words stand for lists of one, as a compact template cannot tell them apart.

    Raises:
        Unreadable: no such tool, arguments that are not a JSON object, or wrong names, number or types of arguments.
    """
    try:
        name, arguments = raw["function"]["name"], raw["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Unreadable from error
    action = next((action for action in graph.actions if action.name == name), None)
    if action is None or not isinstance(arguments, dict) or set(arguments) != set(action.parameters):
        raise Unreadable
    return Call(action.name, {key: _typed(arguments[key], schema["type"]) for key, schema in action.parameters.items()})


def _typed(value: Any, kind: str) -> Any:
    if kind == "array":
        words = value if isinstance(value, list) else [value]
        return [_typed(word, "string") for word in words]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Unreadable
    if kind == "string":
        return str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise Unreadable from error
    if not abs(number) < 1e15:  # also refuses NaN
        raise Unreadable
    return int(number) if number.is_integer() else number


def slip(act: Act, word_classes: Sequence[Sequence[str]], rng: random.Random) -> Act:
    """Replace one random word of an act by another of its class; the act itself where no word has one."""
    if isinstance(act, Answer):
        words = _slip_words(act.text.split(" "), word_classes, rng)
        return Answer(" ".join(words))
    flat = [(key, word) for key, value in act.arguments.items() for word in (value if isinstance(value, list) else [value])]
    changed = _slip_words([str(word) for _, word in flat], word_classes, rng)
    arguments: dict[str, Any] = {key: [] for key, value in act.arguments.items() if isinstance(value, list)}
    for (key, old), new in zip(flat, changed, strict=True):
        value = int(new) if isinstance(old, int) else new
        if isinstance(act.arguments[key], list):
            arguments[key].append(value)
        else:
            arguments[key] = value
    return Call(act.name, {key: arguments[key] for key in act.arguments})


def _slip_words(words: list[str], word_classes: Sequence[Sequence[str]], rng: random.Random) -> list[str]:
    places = [(index, group) for index, word in enumerate(words) for group in word_classes if word in group and len(group) > 1]
    if not places:
        return words
    index, group = rng.choice(places)
    changed = list(words)
    changed[index] = rng.choice([word for word in group if word != words[index]])
    return changed
