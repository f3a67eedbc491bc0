"""Self-play: a proposer draws a region of the graph and writes a task, a solver acts, a verifier accepts or refuses.

For proposal 0, 1, 2, ... until enough are accepted, or a bound or the budget is reached:
  1. draw a task with a random generator of the proposal's own, and let the proposer write it; refuse what is known or nearly so;
  2. the checks that need no solver;
  3. let the solver try, at most `attempts` times; trim what led nowhere; all five checks; the verifier's word;
  4. keep the first attempt that passes, or the best of all that do, where the generator ranks its candidates;
  5. write the attempts back to the graph, refused ones with the check that refused them, together with the proposal's outcome.
A proposal is one transaction: what a kill interrupts was never written, and is played again the same.

What it does not do: train, or talk to the network itself (`roles.py`).
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from .branches import add_attempt, attempts
from .checks import CHECKS, refusals, task_refusals
from .generators.base import TaskGenerator
from .player import Player
from .records import TrajectoryRecord
from .roles import OutOfBudget, Roles
from .similar import is_new
from .trimming import trimmed

NOTED = "self-play"
OUTRANKED = "outranked"  # by a better attempt at the same task


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """How much is wanted, and when to give up.

    Args:
        accepted: tasks.
        attempts: at each task, until one is accepted, or all of them where the generator ranks them.
        patience: proposals for each accepted task that is wanted, on average, before it stops.
        split: None, or whose tasks: held-out ones are those that a world of the same name evaluates on.
    """

    accepted: int
    seed: int = 0
    attempts: int = 2
    patience: int = 50
    split: str | None = "train"


@dataclass(kw_only=True)
class Report:
    """What became of the proposals so far. `outcomes` sums to `proposed`."""

    proposed: int = 0
    accepted: int = 0
    attempts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # accepted, nothing drawn, known, nonsense, refused
    refused: Counter[str] = field(default_factory=Counter)  # by check; one attempt may fail several
    statuses: Counter[str] = field(default_factory=Counter)  # how the attempts ended
    tokens: int = 0  # of the chat models
    money: float = 0.0
    stopped: str = ""  # why, where it is not that enough were accepted

    def as_json(self) -> dict[str, Any]:
        """For `result.json` and the command line."""
        return {
            **asdict(self),
            "outcomes": dict(sorted(self.outcomes.items())),
            "refused": {check: self.refused[check] for check in (*CHECKS, "verifier") if self.refused[check]},
            "statuses": dict(sorted(self.statuses.items())),
        }


def self_play(
    generator: TaskGenerator,
    roles: Roles,
    goal: Goal,
    player: Player | None = None,
    on_progress: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Play until the goal is reached; goes on where an earlier run in the same graph stopped.

    Raises:
        UserError: the graph holds self-play of another generator, other settings or another seed (exit 3).
    """
    store, player = generator.store, player or Player()
    _note(generator, goal)
    report = _so_far(generator)
    roles.budget.used_tokens, roles.budget.used_money = report.tokens, report.money
    while report.accepted < goal.accepted:
        if report.proposed >= goal.patience * goal.accepted:
            report.stopped = f"{report.proposed} proposals gave {report.accepted} accepted tasks"
            break
        before = (roles.budget.used_tokens, roles.budget.used_money)
        try:
            one = _proposal(generator, roles, goal, player, report.proposed)
        except OutOfBudget as error:
            store.sql.rollback()
            report.stopped = str(error)
            break
        one["tokens"], one["money"] = roles.budget.used_tokens - before[0], roles.budget.used_money - before[1]
        outcome = one.pop("outcome")
        row = (report.proposed, outcome, one["attempts"], json.dumps(one))
        store.sql.execute("INSERT INTO proposals VALUES (?, ?, ?, ?)", row)
        store.commit()
        _count(report, outcome, one)
        on_progress(report)
    return report


def accepted(generator: TaskGenerator) -> Iterator[TrajectoryRecord]:
    """The accepted episodes of a graph, in the order of their proposals."""
    return attempts(generator.store, accepted=True)


def _proposal(generator: TaskGenerator, roles: Roles, goal: Goal, player: Player, number: int) -> dict[str, Any]:
    """One proposal, written but not yet committed: its outcome and counts."""
    found: dict[str, Any] = {"outcome": "refused", "attempts": 0, "refused": {}, "statuses": {}}
    draft = generator.draw(random.Random(f"{goal.seed}:{number}"))
    if draft is None or not generator.is_of(draft, goal.split):
        return found | {"outcome": "nothing drawn"}
    task = next((one for _ in range(goal.attempts) if (one := roles.propose(generator, draft)) is not None), None)
    if task is None:
        return found | {"outcome": "nonsense"}
    of_task = task_refusals(generator, task)
    if not of_task and not is_new(generator.store, task.key, task.instruction, generator.duplicate_threshold):
        return found | {"outcome": "known"}
    tries = 1 if of_task else goal.attempts  # no solver mends a task; one try shows what it would have met
    played: list[tuple[TrajectoryRecord, Mapping[str, str]]] = []
    for attempt in range(tries):
        episode = generator.start_record(task)
        seed = int(random.Random(f"{goal.seed}:{number}:{attempt}").getrandbits(31))
        record = player.play(episode, task, generator.tools_of(task), roles.solve(generator, task, episode.opening(), seed))
        record = trimmed(generator, record)
        why = refusals(generator, record, of_task)
        if not why and (veto := roles.vetoes(generator, record)):
            why = {"verifier": veto}
        told = {"generator": generator.name, "proposal": number, "attempt": attempt, "seed": goal.seed, **roles.describe()}
        played.append((record.with_provenance(**told, checks="passed" if not why else dict(why)), why))
        found["attempts"] += 1
        found["statuses"][record.status] = found["statuses"].get(record.status, 0) + 1
        for check in why:
            found["refused"][check] = found["refused"].get(check, 0) + 1
        if not why and not generator.ranks_candidates:
            break
    best = max((record for record, why in played if not why), key=rank, default=None)  # the first of equals
    for record, why in played:
        add_attempt(generator.store, record, accepted=record is best, reason=next(iter(why), "" if record is best else OUTRANKED))
    return found if best is None else found | {"outcome": "accepted"}


def rank(record: TrajectoryRecord) -> tuple[float, float, int]:
    """The right outcome, then right steps, then the fewest."""
    verdicts = [step.verdict for step in record.steps if step.verdict is not None]
    return (record.reward or 0.0, sum(verdicts) / len(verdicts) if verdicts else 0.0, -len(record.steps))


def _note(generator: TaskGenerator, goal: Goal) -> None:
    """Refuse to go on with what another self-play began."""
    who = {"generator": generator.name, "settings": asdict(generator.settings), "seed": goal.seed, "split": goal.split}
    who["attempts"] = goal.attempts
    known = generator.store.noted(NOTED)
    if known is None:
        generator.store.note(NOTED, who)
        generator.store.commit()
    elif known != json.loads(json.dumps(who)):
        changed = sorted(key for key in who if known.get(key) != json.loads(json.dumps(who[key])))
        raise UserError(
            f"{generator.store.path} holds self-play with another {', '.join(changed)}",
            exit_code=ExitCode.SPEC,
            fix="go on with the same, or play into another graph",
        )


def _so_far(generator: TaskGenerator) -> Report:
    report = Report()
    for outcome, counts in generator.store.sql.execute("SELECT outcome, counts FROM proposals ORDER BY number"):
        _count(report, outcome, json.loads(counts))
    return report


def _count(report: Report, outcome: str, one: Mapping[str, Any]) -> None:
    report.proposed += 1
    report.accepted += outcome == "accepted"
    report.outcomes[outcome] += 1
    report.attempts += one["attempts"]
    report.refused.update(one["refused"])
    report.statuses.update(one["statuses"])
    report.tokens += one["tokens"]
    report.money += one["money"]
