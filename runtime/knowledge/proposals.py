"""What one proposal of self-play came to, before it is written; and how several processes share proposals.

Processes share by number: in every round of theirs each plays other proposals, all of them hear of all, and each writes all of
them, in order, into a graph of its own. What a proposal comes to depends on its number alone, so the graphs are the same, and the
same as that of one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .records import TaskRecord, TrajectoryRecord, record_from_json, task_from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """An episode, and why it is refused, by check; accepted where there is no reason."""

    record: TrajectoryRecord
    refused: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """A task of the region, and the attempts at it."""

    task: TaskRecord
    is_sound: bool  # whether it passes the checks that need no solver
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What came of one region.

    Args:
        without_task: what became of it where no task was played.
        unfinished: why the models could not finish it. Nothing of it is written but what it used.
        failure: where an endpoint or a tool is why: what the error says, its exit code, and what to do.
    """

    rounds: tuple[Round, ...] = ()
    without_task: str = ""
    tokens: int = 0
    money: float = 0.0
    unfinished: str = ""
    failure: tuple[str, int, str | None] | None = None

    def as_json(self) -> dict[str, Any]:
        """For another process."""
        return {
            "rounds": [
                {
                    "task": one.task.as_json(),
                    "is_sound": one.is_sound,
                    "attempts": [[two.record.as_json(), dict(two.refused)] for two in one.attempts],
                }
                for one in self.rounds
            ],
            "without_task": self.without_task,
            "tokens": self.tokens,
            "money": self.money,
            "unfinished": self.unfinished,
            "failure": self.failure,
        }


def proposal_from_json(data: Mapping[str, Any]) -> Proposal:
    """The proposal that another process played."""
    rounds = tuple(
        Round(
            task=task_from_json(one["task"]),
            is_sound=one["is_sound"],
            attempts=tuple(Attempt(record=record_from_json(row), refused=why) for row, why in one["attempts"]),
        )
        for one in data["rounds"]
    )
    return Proposal(**{**data, "rounds": rounds})


class Crew(Protocol):
    """The processes that share the proposals of one self-play."""

    rank: int
    size: int

    def share(self, own: Sequence[Proposal]) -> Sequence[Proposal]:
        """Everybody's, in the order of their ranks. Collective."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def share(self, own: Sequence[Proposal]) -> Sequence[Proposal]:
        return own
