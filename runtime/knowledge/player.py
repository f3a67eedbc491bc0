"""Plays one episode with a bound on everything, and makes it a record.

What it does: takes turns between a solver and a world; compacts a full context; rolls back at the turn cap and asks for an answer
(both as in the Agents-A1 report); keeps every fault as a status of the record: a tool that hangs, floods, dies or answers bytes, a
solver that loops or writes nonsense, a verifier that raises.
A simulated user is asked by the thread that plays, off the clock of the tools: like a solver, it has a bound of its own.
What it does not do: end what hangs. A call that is not back in time is left alone in its thread, its episode is over, and after
`MOST_HUNG` of them the run stops; tools that need ending run in a process of their own (`worlds/sandbox.py`).
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from ...specs.diagnostics import ExitCode, UserError
from ...specs.model import ASK_FOR_ANSWER
from ..data.trajectories import RowError, chat_messages
from ..finalisation import Finalisation
from ..worlds.protocol import Episode, Message, SimulatedUser, Solver, TalkingEpisode
from .generators.base import COMPACT, NOTES
from .records import StepRecord, TaskRecord, TrajectoryRecord

MOST_HUNG = 8
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What an episode may take."""

    turns: int = 64
    tool_calls: int | None = None
    wall_seconds: float | None = None  # looked at between turns
    context_tokens: int = 131_072  # of one context; a fuller one is compacted
    episode_tokens: int = 1_048_576  # of all contexts together
    compact_at: float = 0.9  # share of the context that is full before it is compacted
    message_bytes: int = 256 * 1024  # of a message of the solver
    observation_bytes: int = 64 * 1024  # of an observation; the rest is cut off, and the observation says so
    tool_seconds: float = 60.0
    repeats: int = 3  # the same calls so often in a row are a loop
    ask: str = ASK_FOR_ANSWER  # what the user says where an answer is forced


class SolverFailure(Exception):
    """A solver has no next message; the text says why."""


class OutOfBudget(Exception):
    """Tokens or money are used up, and the episode is not finished."""


class _Over(Exception):
    """The episode ends here; the status says why."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def estimate_tokens(text: str) -> int:
    """A quarter of the bytes: near what byte-pair tokenizers make of English."""
    return len(text.encode("utf-8", "replace")) // 4


@dataclass
class Player:
    """Plays episodes, each with a thread of its own for its world.

    Args:
        count: tokens of a text.
        hung: calls that did not come back, of all episodes.
    """

    bounds: Bounds = field(default_factory=Bounds)
    count: Callable[[str], int] = estimate_tokens
    hung: int = 0

    def play(self, episode: Episode, task: TaskRecord, tools: Sequence[Any], solver: Solver) -> TrajectoryRecord:
        """One episode; always a record, whatever happens on the way.

        Raises:
            UserError: too many calls hang.
            OutOfBudget: the models may not go on.
        """
        with _Worker(self.bounds.tool_seconds) as worker:
            game = _Game(self, episode, solver, worker)
            try:
                game.run()
                status = "answered"
            except _Over as over:
                status = over.status
            answered = episode.done and status in ("answered", "forced")
            reward: float | None = 0.0
            if answered:
                try:
                    reward = float(game.guarded(episode.outcome))
                except _Over as over:
                    status, reward = f"verifier {over.status.removeprefix('tool ')}", None
        last = game.messages[-1] if game.messages else {}
        return TrajectoryRecord(
            task=task,
            messages=tuple(game.messages),
            tools=tuple(tools),
            steps=tuple(game.steps),
            restarts=tuple(game.restarts),
            answer=str(last.get("content") or "") if answered else None,
            status=status,
            reward=reward,
            provenance={"tokens": game.tokens, "turns": game.turns},
        )


class _Game:
    """An episode in progress."""

    def __init__(self, player: Player, episode: Episode, solver: Solver, worker: "_Worker") -> None:
        self.player, self.episode, self.solver, self.bounds, self.worker = player, episode, solver, player.bounds, worker
        if (user := getattr(episode, "user", None)) is not None:
            cast(TalkingEpisode, episode).user = _UserOutside(user, worker)
        self.messages: list[Message] = []
        self.steps: list[StepRecord] = []
        self.restarts: list[int] = []
        self.tokens = self.context = self.turns = self.calls = self.repeated = 0
        self.began = time.monotonic()
        self.finalisation = Finalisation(prompt=self.bounds.ask)
        self._before: list[Any] | None = None

    def run(self) -> None:
        """Turns until the world is done.

        Raises:
            _Over: with the status, where it ends otherwise.
        """
        for message in self.guarded(self.episode.opening):
            self._append(message)
        opening = list(self.messages)
        observations: list[Message] = []
        while not self.episode.done:
            self._end_late()
            if self.context > self.bounds.context_tokens * self.bounds.compact_at:
                observations = self._compact(opening, observations)
            action = self._next(observations)
            self.turns += 1
            cap = self._cap(action)
            if self.finalisation.refuses(action, at_cap=cap is not None):
                action = self._answer(opening, cap or "turns")
            self.calls += len(action.get("tool_calls", ()))
            observations = self._act(action)
            self._end_loops(action)
            if self.tokens > self.bounds.episode_tokens:
                raise _Over("tokens")
            if cap is not None and not self.episode.done:
                raise _Over(cap)
        if self.finalisation.asked:
            raise _Over("forced")

    def guarded(self, action: Callable[[], T]) -> T:
        """Do it in time, whatever it raises.

        Raises:
            _Over: it did not come back, or raised.
        """
        try:
            return self.worker.do(action)
        except TimeoutError:
            self.player.hung += 1
            if self.player.hung == MOST_HUNG:
                raise UserError(
                    f"{MOST_HUNG} tool calls did not come back within {self.bounds.tool_seconds:g} s each",
                    exit_code=ExitCode.FAILED,
                    fix="mend the tools or give them more time; what was finished is kept",
                ) from None
            raise _Over("tool hung") from None
        except (UserError, OutOfBudget):
            raise
        except Exception as error:  # whatever a tool or verifier raises is what became of the episode
            raise _Over(f"tool died: {type(error).__name__}") from error

    def _cap(self, action: Message) -> str | None:
        """Which bound an action reaches that calls for an answer."""
        if self.turns >= self.bounds.turns:
            return "turns"
        most = self.bounds.tool_calls
        return "calls" if most is not None and self.calls + len(action.get("tool_calls", ())) > most else None

    def _end_late(self) -> None:
        if self.bounds.wall_seconds is not None and time.monotonic() - self.began >= self.bounds.wall_seconds:
            raise _Over("time")

    def _answer(self, opening: list[Message], cap: str) -> Message:
        """The answer in place of the turn that reached the cap, which is no part of the episode yet but of what the solver saw."""
        self._end_late()
        if (restart := getattr(self.solver, "restart", None)) is not None:
            start = self.restarts[-1] if self.restarts else 0
            restart([*(opening if self.restarts else ()), *self.messages[start:]])
        asked = self.finalisation.ask()
        self._append(asked)
        action = self._next([asked])
        if self.finalisation.refuses(action, at_cap=True):
            raise _Over(cap)
        return action

    def _compact(self, opening: list[Message], observations: list[Message]) -> list[Message]:
        """Let the solver write notes, and begin its context anew with them."""
        asked = {"role": "user", "content": COMPACT}
        self._append(asked)
        notes = self._next([*observations, asked])
        if notes.get("tool_calls"):
            raise _Over("context")
        self.steps.append(StepRecord(message=len(self.messages)))
        self._append(notes)
        self.restarts.append(len(self.messages))
        self.context = sum(self._count(message) for message in opening)
        start = {"role": "user", "content": NOTES + str(notes["content"])}
        self._append(start)
        if self.context > self.bounds.context_tokens * self.bounds.compact_at:
            raise _Over("context")
        if (restart := getattr(self.solver, "restart", None)) is not None:
            restart([*opening])
        return [start]

    def _next(self, observations: Sequence[Message]) -> Message:
        try:
            action = self.solver.next(observations)
        except SolverFailure as failure:
            raise _Over(f"solver: {failure}") from None
        if not isinstance(action, dict) or action.get("role") != "assistant":
            raise _Over("solver: its message is not an assistant's")
        try:
            text = json.dumps(action, ensure_ascii=False, allow_nan=False)
            text.encode()
            (_, action) = chat_messages({"messages": [{"role": "user", "content": ""}, action]})
        except (RowError, TypeError, ValueError, RecursionError):
            raise _Over("solver: nonsense") from None
        if len(text) > self.bounds.message_bytes:
            raise _Over("solver: flooded")
        return action

    def _act(self, action: Message) -> list[Message]:
        known = len(self.episode.steps)
        place = len(self.messages)
        self._append(action)
        try:
            given = self.guarded(lambda: self.episode.act(action))
        except _Over:
            self.steps.append(StepRecord(message=place, call=0 if action.get("tool_calls") else None, readable=False))
            raise
        observations = [self._bounded(one) for one in given]
        shown = getattr(self.episode, "evidence", ())
        for number, step in enumerate(self.episode.steps[known:]):
            answered = number < len(observations)
            evidence = tuple(shown[known + number]) if known + number < len(shown) else ()
            self.steps.append(
                StepRecord(
                    message=place,
                    call=number if action.get("tool_calls") else None,
                    observation=place + 1 + number if answered else None,
                    verdict=step.verdict,
                    readable=step.readable,
                    evidence=evidence,
                )
            )
        for observation in observations:
            self._append(observation)
        return observations

    def _bounded(self, message: Any) -> Message:
        """An observation as text of a bounded size, in a role that is not the model's."""
        if not isinstance(message, dict):
            message = {"role": "tool", "content": message}
        content = message.get("content")
        if isinstance(content, (bytes, bytearray)):
            content = f"[binary, {len(content)} bytes]"
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=repr)
        raw = text.encode("utf-8", "replace")
        if "\x00" in text:
            raw = f"[binary, {len(raw)} bytes]".encode()
        if len(raw) > self.bounds.observation_bytes:
            kept = raw[: self.bounds.observation_bytes].decode("utf-8", "ignore")
            raw = f"{kept}\n[cut: {len(raw)} bytes]".encode()
        role = message.get("role") if message.get("role") in ("tool", "user") else "tool"
        identity = {"tool_call_id": str(message["tool_call_id"])} if message.get("tool_call_id") else {}
        return {"role": role, "content": raw.decode("utf-8", "replace"), **identity}

    def _end_loops(self, action: Message) -> None:
        calls = [call["function"] for call in action.get("tool_calls", ())]
        self.repeated = self.repeated + 1 if calls and calls == self._before else 0
        self._before = calls
        if self.repeated + 1 == self.bounds.repeats:
            raise _Over("looped")

    def _append(self, message: Message) -> None:
        self.messages.append(message)
        tokens = self._count(message)
        self.tokens += tokens
        self.context += tokens

    def _count(self, message: Message) -> int:
        texts = [str(message.get("content") or "")]
        for call in message.get("tool_calls", ()):
            texts += [str(call["function"]["name"]), str(call["function"]["arguments"])]
        return sum(self.player.count(text) for text in texts) + 4  # and the template's own


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of an action."""

    value: Any
    error: BaseException | None = None

    @classmethod
    def of(cls, action: Callable[[], Any]) -> "_Done":
        try:
            return cls(action())
        except BaseException as error:
            return cls(None, error)

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _Worker:
    """A thread that does one thing after another, each within `seconds`, and is left alone when one does not end.

    What it does may ask for something to be done outside, by the thread that waits for it. That is off the clock.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[_Done | Callable[[], Any]] = queue.SimpleQueue()  # what is done, or is to be done outside
        self._outside: queue.SimpleQueue[_Done] = queue.SimpleQueue()

    def __enter__(self) -> "_Worker":
        threading.Thread(target=self._serve, name="tools", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asked.put(None)

    def do(self, action: Callable[[], T]) -> T:
        """Raises TimeoutError where it is not back in time, and what it raises."""
        self._asked.put(action)
        while True:
            try:
                told = self._told.get(timeout=self._seconds)
            except queue.Empty:
                raise TimeoutError from None
            if isinstance(told, _Done):
                return told.result()
            self._outside.put(_Done.of(told))

    def outside(self, action: Callable[[], T]) -> T:
        """From within what it does: the result of an action of the thread that waits."""
        self._told.put(action)
        return self._outside.get().result()

    def _serve(self) -> None:
        while (action := self._asked.get()) is not None:
            self._told.put(_Done.of(action))


@dataclass(frozen=True, slots=True)
class _UserOutside:
    """The simulated user of an episode whose world acts in a worker."""

    user: SimulatedUser
    worker: _Worker

    def reply(self, brief: str, dialogue: Sequence[Message]) -> str | None:
        return self.worker.outside(lambda: self.user.reply(brief, dialogue))
