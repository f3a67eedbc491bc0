"""What a world is.

A world draws tasks from its knowledge-action graph `(corpus, actions, observations, verifiers)`, serves tools, returns
observations, and verifies steps and outcome (report section on the knowledge-action infrastructure). Users bring their own by an
entry point in the group `polymath.worlds` that names a callable `(settings) -> World`.

Messages are plain dictionaries in OpenAI's chat form: `role`, `content`, `tool_calls` with `function.name` and
`function.arguments` (a JSON string), and tool results with `role: tool`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...specs.diagnostics import ExitCode, UserError

Message = dict[str, Any]
Split = Literal["train", "heldout"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task of a world."""

    world: str
    key: str  # canonical form; two tasks with one key are the same task
    payload: Mapping[str, Any]  # JSON; all that the world needs to start it again
    tools: Sequence[Mapping[str, Any]] | None = None  # OpenAI function schemas, where they are not the world's


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One record `(state, action, observation, verifier outcome)` of an episode (report, KAG section)."""

    state: Mapping[str, Any]  # what was known: evidence and earlier observations
    action: Message  # the assistant's message
    observation: str | None  # what the world answered; None at the end
    verdict: float | None  # the step verifier's outcome, None where none applies
    readable: bool  # whether the world could read the action at all


class Episode(Protocol):
    """A running task."""

    steps: Sequence[Step]
    done: bool

    def opening(self) -> list[Message]:
        """The messages before the model's first turn (an optional system message, then the user's)."""
        ...

    def act(self, message: Message) -> list[Message]:
        """Take the assistant's message; return the observations (tool or user messages), empty when the episode is done.

        A call that cannot be read is an observation, never an exception.
        """
        ...

    def outcome(self) -> float:
        """The outcome verifier: 1.0 or 0.0. An episode that never finished is 0.0."""
        ...


class SimulatedUser(Protocol):
    """Whoever speaks for the user of an episode, in place of the world's script."""

    def reply(self, brief: str, dialogue: Sequence[Message]) -> str | None:
        """What the user says next; None where nothing is left to say.

        Args:
            brief: who the user is, what they want and all that they know.
            dialogue: what user and assistant have said, the user first; no calls and no tool results.
        """
        ...


class TalkingEpisode(Episode, Protocol):
    """A running task whose user may be simulated (`specs.generators.USER_WORLDS`)."""

    user: SimulatedUser | None  # None: the world's script


class Solver(Protocol):
    """A program that acts: the oracle, or a demonstrator with a habit."""

    def next(self, observations: Sequence[Message]) -> Message:
        """The next assistant message, given the observations since the last one (empty at the start)."""
        ...


class World(Protocol):
    """A world with its settings applied."""

    name: str
    tools: Sequence[Mapping[str, Any]]  # OpenAI function schemas

    def tasks(self, split: Split, count: int, seed: int) -> list[Task]:
        """`count` distinct tasks of a split, in an order that the seed decides.

        A task is held out when sha256(f"{world}:{key}") modulo 4 is 0.

        Raises:
            WorldError: the world has fewer distinct tasks at these settings; the message says how many.
        """
        ...

    def start(self, task: Task) -> Episode:
        """A new episode of a task. The same task always starts the same."""
        ...

    def demonstrator(self, task: Task, *, seed: int, habit_rate: float, slip_rate: float) -> Solver:
        """A solver: the oracle at rates 0, else one that follows the world's wrong habit on hard tasks, or slips."""
        ...


class WorldError(UserError):
    """A world cannot do what the spec asks: a mistake in the spec (exit 3)."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message, exit_code=ExitCode.SPEC, fix=fix)
