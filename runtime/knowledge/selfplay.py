"""Self-play: a proposer draws a region of the graph and writes a task, a solver acts, a verifier accepts or refuses.

For proposal 0, 1, 2, ... until enough are accepted, or a bound or the budget is reached:
  1. draw a task with a random generator of the proposal's own, and let the proposer write it; refuse what is known or nearly so;
  2. the checks that need no solver;
  3. let the solver try, at most `attempts` times; trim what led nowhere; all five checks; the verifier's word;
  4. keep the first attempt that passes, or the best of all that do, where the generator ranks its candidates;
  5. where none does, go round again with another task of the same region, at most `rounds` times in all;
  6. write the attempts back to the graph, refused ones with the check that refused them, together with the proposal's outcome.
A proposal is one transaction: what a kill interrupts was never written, and is played again the same. Several processes share
proposals by number (`proposals.py`), and each plays as many side by side as its models take: what is written does not depend on how
many they are.

What it does not do: train, or talk to the network itself (`roles.py`).
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from .branches import add_attempt, attempts
from .checks import CHECKS, refusals, task_refusals
from .generators.base import TaskGenerator
from .graph import LICENCES
from .player import OutOfBudget, Player
from .proposals import Alone, Attempt, Crew, Proposal, Round
from .records import TaskRecord, TrajectoryRecord
from .roles import Roles
from .similar import is_new, remember
from .trimming import trimmed

NOTED, LOST = "self-play", "lost"  # facts of a graph: whose self-play it holds, and what its unfinished proposals used
OUTRANKED = "outranked"  # by a better attempt at the same task
VERIFIER = "verifier"  # of a model, which refuses what the checks accept
ACCEPTED, REFUSED, KNOWN, NONSENSE, NOTHING = "accepted", "refused", "known", "nonsense", "nothing drawn"  # outcomes of a proposal


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """How much is wanted, and when to give up.

    Args:
        accepted: tasks.
        attempts: at each task, until one is accepted, or all of them where the generator ranks them.
        rounds: tasks proposed of a region, until one is accepted.
        patience: proposals for each accepted task that is wanted, on average, before it stops.
        split: None, or whose tasks: held-out ones are those that a world of the same name evaluates on.
    """

    accepted: int
    seed: int = 0
    attempts: int = 2
    rounds: int = 2
    patience: int = 50
    split: str | None = "train"


@dataclass(kw_only=True)
class Report:
    """What became of the proposals so far. `outcomes` sums to `proposed`."""

    proposed: int = 0
    accepted: int = 0
    again: int = 0  # times that a region was proposed again, after a refusal
    attempts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # by check; one attempt may fail several
    statuses: Counter[str] = field(default_factory=Counter)  # how the attempts ended
    tokens: int = 0  # of the chat models
    money: float = 0.0
    stopped: str = ""  # why, where it is not that enough were accepted
    is_out_of_budget: bool = False

    def as_json(self) -> dict[str, Any]:
        """For `result.json` and the command line."""
        return {
            **asdict(self),
            "outcomes": dict(sorted(self.outcomes.items())),
            "refused": {check: self.refused[check] for check in (*CHECKS, VERIFIER) if self.refused[check]},
            "statuses": dict(sorted(self.statuses.items())),
        }


def self_play(
    generator: TaskGenerator,
    roles: Roles,
    goal: Goal,
    player: Player | None = None,
    on_progress: Callable[[Report], None] = lambda report: None,
    crew: Crew | None = None,
) -> Report:
    """Play until the goal is reached; goes on where an earlier run in the same graph stopped.

    Args:
        crew: who shares the proposals, each with a copy of the graph; left out, nobody.

    Raises:
        UserError: the graph holds self-play of another generator, other settings or another seed (exit 3); or an endpoint or a
            tool failed (exit 6), and what was finished before is written.
    """
    player, crew = player or Player(), crew or Alone()
    _note(generator, goal)
    report, most = _so_far(generator), goal.patience * goal.accepted
    while report.accepted < goal.accepted and not report.stopped:
        if report.proposed >= most:
            report.stopped = f"{report.proposed} proposals gave {report.accepted} accepted tasks"
            break
        roles.spending.go_on(report.tokens, report.money)
        wanted = min(goal.accepted - report.accepted, most - report.proposed)  # no more is played than may be needed
        at_once = min(roles.at_once, math.ceil(wanted / crew.size))
        first = report.proposed + crew.rank * at_once
        played = crew.share(_play_side_by_side(generator, roles, goal, player, range(first, first + at_once)))
        for place, proposal in enumerate(played):
            if proposal.unfinished:
                report.stopped, report.is_out_of_budget = proposal.unfinished, True
            if report.stopped or report.accepted == goal.accepted or report.proposed == most:
                _lose(generator, report, played[place:])
                break
            _count(report, *_write(generator, proposal, report.proposed))
            on_progress(report)
    return report


def accepted(generator: TaskGenerator) -> Iterator[TrajectoryRecord]:
    """The accepted episodes of a graph, in the order of their proposals."""
    return attempts(generator.store, accepted=True)


def _play_side_by_side(
    generator: TaskGenerator, roles: Roles, goal: Goal, player: Player, numbers: Sequence[int]
) -> list[Proposal]:
    """Proposals, in order. One that fails ends those that are not finished at their next question to a model."""

    def play(number: int) -> Proposal:
        with roles.baton:
            mine = roles.of_proposal()
            try:
                return _play(generator, mine, goal, player, number)
            except OutOfBudget as error:
                why, failure = str(error), None
            except UserError as error:
                why, failure = error.message, (error.message, int(error.exit_code), error.fix)
                roles.spending.is_closed = True
            return Proposal(unfinished=why, failure=failure, tokens=mine.spending.tokens, money=mine.spending.money)

    if len(numbers) == 1:
        return [play(numbers[0])]
    with ThreadPoolExecutor(len(numbers), thread_name_prefix="proposal") as pool:
        try:
            return list(pool.map(play, numbers))
        except BaseException:
            roles.spending.is_closed = True
            raise


def _play(generator: TaskGenerator, roles: Roles, goal: Goal, player: Player, number: int) -> Proposal:
    """One proposal; nothing of it is written."""
    rounds: list[Round] = []
    without_task = ""
    for again in range(goal.rounds):
        name = f"{goal.seed}:{number}" + (f"/{again}" if again else "")
        task = _proposed(generator, roles, goal, number, name, again)
        if isinstance(task, str):
            without_task = without_task or task
            if task == NOTHING and not again:
                break
            continue
        of_task = task_refusals(generator, task)
        if not of_task and not _is_new(generator, task, rounds):
            without_task = without_task or KNOWN
            break
        rounds.append(_attempted(generator, roles, goal, player, task, of_task, number, name))
        if any(not one.refused for one in rounds[-1].attempts):
            break
    spent = {"tokens": roles.spending.tokens, "money": roles.spending.money}
    return Proposal(rounds=tuple(rounds), without_task=without_task, **spent)


def _proposed(generator: TaskGenerator, roles: Roles, goal: Goal, number: int, name: str, again: int) -> TaskRecord | str:
    """A task of the proposal's region, or what became of it."""
    region = random.Random(f"{goal.seed}:{number}")
    draft = generator.draw(random.Random(name), region) if again else generator.draw(region)
    if draft is None or not generator.is_of(draft, goal.split):
        return NOTHING
    for attempt in range(goal.attempts):
        if (task := roles.propose(generator, draft, _seed(name, "propose", attempt))) is not None:
            return task
    return NONSENSE


def _attempted(
    generator: TaskGenerator,
    roles: Roles,
    goal: Goal,
    player: Player,
    task: TaskRecord,
    of_task: Mapping[str, str],
    number: int,
    name: str,
) -> Round:
    """The attempts at a task, until one passes, or all of them where the generator ranks its candidates."""
    found: list[Attempt] = []
    for attempt in range(1 if of_task else goal.attempts):  # no solver mends a task; one try shows what it would have met
        episode = generator.start_record(task)
        solver = roles.solve(generator, task, episode, _seed(name, attempt))
        record = trimmed(generator, player.play(episode, task, generator.tools_of(task), solver))
        why = refusals(generator, record, of_task)
        if not why and (veto := roles.vetoes(generator, record, _seed(name, "verify", attempt))):
            why = {VERIFIER: veto}
        told = {"generator": generator.name, "proposal": number, "attempt": attempt, "seed": goal.seed, **roles.describe()}
        if licences := generator.store.noted(LICENCES):
            told["licence"] = " AND ".join(licences)
        found.append(Attempt(record=record.with_provenance(**told, checks="passed" if not why else dict(why)), refused=why))
        if not why and not generator.ranks_candidates:
            break
    return Round(task=task, is_sound=not of_task, attempts=tuple(found))


def _is_new(generator: TaskGenerator, task: TaskRecord, earlier: Sequence[Round]) -> bool:
    """Whether no earlier proposal had nearly the same task, and no earlier round of this one the same."""
    if any(one.task.key == task.key for one in earlier):
        return False
    return is_new(generator.store, task.key, task.instruction, generator.duplicate_threshold)


def _write(generator: TaskGenerator, proposal: Proposal, number: int) -> tuple[str, dict[str, Any]]:
    """Write a proposal, all of it or none; returns its outcome and counts. A task may be known by now, which ends it there."""
    store = generator.store
    rounds: list[Round] = []
    for one in proposal.rounds:
        if one.is_sound and not _is_new(generator, one.task, rounds):
            break
        rounds.append(one)
    outcome = REFUSED if rounds else proposal.without_task or KNOWN
    counts: dict[str, Any] = {"attempts": 0, "refused": Counter(), "statuses": Counter(), "again": max(0, len(rounds) - 1)}
    for one in rounds:
        for node in generator.invented(one.task):
            store.add(node.kind, node.name, node.body)
        if one.is_sound:
            remember(store, one.task.key, one.task.instruction)
        passed = [two.record for two in one.attempts if not two.refused]
        best = max(passed, key=rank, default=None)  # the first of equals
        for two in one.attempts:
            is_best = two.record is best
            add_attempt(store, two.record, accepted=is_best, reason=next(iter(two.refused), "" if is_best else OUTRANKED))
            counts["attempts"] += 1
            counts["statuses"][two.record.status] += 1
            counts["refused"].update(two.refused.keys())
        outcome = ACCEPTED if best is not None else outcome
    counts |= {"tokens": proposal.tokens, "money": proposal.money}
    store.sql.execute("INSERT INTO proposals VALUES (?, ?, ?, ?)", (number, outcome, counts["attempts"], json.dumps(counts)))
    store.commit()
    return outcome, counts


def _seed(*parts: object) -> int:
    return int(random.Random(":".join(map(str, parts))).getrandbits(31))


def rank(record: TrajectoryRecord) -> tuple[float, float, int]:
    """The right outcome, then right steps, then the fewest."""
    verdicts = [step.verdict for step in record.steps if step.verdict is not None]
    return (record.reward or 0.0, sum(verdicts) / len(verdicts) if verdicts else 0.0, -len(record.steps))


def _note(generator: TaskGenerator, goal: Goal) -> None:
    """Refuse to go on with what another self-play began."""
    who = {"generator": generator.name, "settings": asdict(generator.settings), "seed": goal.seed, "split": goal.split}
    who |= {"attempts": goal.attempts, "rounds": goal.rounds}
    known = generator.store.noted(NOTED)
    if known is None:
        generator.store.note(NOTED, who)
    elif known != json.loads(json.dumps(who)):
        changed = sorted(key for key in who if known.get(key) != json.loads(json.dumps(who[key])))
        raise UserError(
            f"{generator.store.path} holds self-play with another {', '.join(changed)}",
            exit_code=ExitCode.SPEC,
            fix="go on with the same, or play into another graph",
        )
    generator.store.commit()  # and what the generator wrote when it was made


def _lose(generator: TaskGenerator, report: Report, lost: Sequence[Proposal]) -> None:
    """Count what proposals used that are not written.

    Raises:
        UserError: what failed, where one of them did and is why they are not.
    """
    report.tokens += sum(one.tokens for one in lost)
    report.money += sum(one.money for one in lost)
    known = generator.store.noted(LOST) or {"tokens": 0, "money": 0.0}
    for name in known:
        known[name] += sum(getattr(one, name) for one in lost)
    generator.store.note(LOST, known)
    generator.store.commit()
    failure = next((one.failure for one in lost if one.failure is not None), None)
    if lost[0].unfinished and failure is not None:
        message, exit_code, fix = failure
        raise UserError(message, exit_code=exit_code, fix=fix)


def _so_far(generator: TaskGenerator) -> Report:
    lost = generator.store.noted(LOST) or {}
    report = Report(tokens=lost.get("tokens", 0), money=lost.get("money", 0.0))
    for outcome, counts in generator.store.sql.execute("SELECT outcome, counts FROM proposals ORDER BY number"):
        _count(report, outcome, json.loads(counts))
    return report


def _count(report: Report, outcome: str, one: Mapping[str, Any]) -> None:
    report.proposed += 1
    report.accepted += outcome == ACCEPTED
    report.again += one["again"]
    report.outcomes[outcome] += 1
    report.attempts += one["attempts"]
    report.refused.update(one["refused"])
    report.statuses.update(one["statuses"])
    report.tokens += one["tokens"]
    report.money += one["money"]
