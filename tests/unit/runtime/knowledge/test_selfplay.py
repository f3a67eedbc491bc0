"""Self-play: what is accepted passed every check, a kill loses and doubles nothing, budgets hold, and models play the roles."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.knowledge.branches import attempts
from polymath.runtime.knowledge.checks import CHECKS
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.player import SolverFailure
from polymath.runtime.knowledge.roles import Reply, Roles, Spending
from polymath.runtime.knowledge.selfplay import Goal, accepted, rank, self_play
from polymath.specs.diagnostics import UserError
from polymath.specs.self_play import Budget

IMPERFECT = Roles(slip_rate=0.1, guess_rate=0.2)


def chains(path: Path) -> Any:
    return make_generator("scientific_chains", {}, GraphStore.create(path))


class Says:
    """A chat model that says what it is told to, then the last thing again."""

    name, at_once = "says", 1

    def __init__(self, *texts: Any) -> None:
        self.texts, self.asked = list(texts), []

    def reply(self, messages: Sequence[Any], tools: Sequence[Any], seed: int) -> Reply:
        self.asked.append(list(messages))
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if isinstance(text, Exception):
            raise text
        message = text(messages) if callable(text) else {"role": "assistant", "content": text}
        return Reply(message=message, read_tokens=100, written_tokens=10)


def test_what_is_accepted_passed_every_check_and_failures_stay_as_failed_branches(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    report = self_play(generator, IMPERFECT, Goal(accepted=40))
    assert report.accepted == 40 and sum(report.outcomes.values()) == report.proposed
    assert report.refused["answered"] and report.refused["consulted"] and set(report.refused) <= set(CHECKS)
    kept, refused = list(accepted(generator)), list(attempts(generator.store, accepted=False))
    assert len(kept) == 40 and len({record.task.key for record in kept}) == 40
    assert len(kept) + len(refused) == report.attempts
    assert all(record.reward == 1.0 and record.provenance["checks"] == "passed" for record in kept)
    assert all(record.provenance["refused"] in CHECKS for record in refused)
    assert not any("lookup" in json.dumps(record.messages) for record in kept), "calls that no tool takes are trimmed"
    assert any(record.provenance.get("trimmed") for record in kept)


def test_an_episode_of_nothing_but_calls_that_led_nowhere_stays_a_failed_branch_that_can_be_read(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}
    lost = Says(lambda messages: {"role": "assistant", "content": "", "tool_calls": [call]})
    generator = chains(tmp_path / "a.sqlite")
    self_play(generator, Roles(solver=lost), Goal(accepted=1, attempts=1, patience=3))
    records = list(attempts(generator.store))
    assert records and all(record.status == "looped" and len(record.steps) == 3 for record in records)


class Wandering(Roles):
    """The first candidate at a task reads something twice over that the path does not need; the second does not."""

    def solve(self, generator: Any, task: Any, episode: Any, seed: int) -> Any:
        solver = super().solve(generator, task, episode, seed)
        self.solved = (*getattr(self, "solved", ()), task.key)
        return Detour(solver, generator) if self.solved.count(task.key) == 1 else solver


class Detour:
    def __init__(self, solver: Any, generator: Any) -> None:
        self.solver, self.generator, self.waiting = solver, generator, None

    def next(self, observations: Sequence[Any]) -> Any:
        if self.waiting is not None:
            return self.waiting.pop() if self.waiting else self.solver.next(observations)
        message = self.solver.next(observations)
        if not message.get("tool_calls"):
            return message
        arguments = json.dumps({"name": "Somebody Else"})
        finder = next(one["function"]["name"] for one in self.generator.tools if one["function"]["name"].startswith("find_"))
        call = {"id": "call_0", "type": "function", "function": {"name": finder, "arguments": arguments}}
        self.waiting = [message]
        return {"role": "assistant", "content": "", "tool_calls": [call]}


def test_of_several_candidates_the_best_that_passes_is_kept_and_the_others_stay_as_branches(tmp_path: Path) -> None:
    generator = make_generator("tool_subgraphs", {}, GraphStore.create(tmp_path / "a.sqlite"))
    report = self_play(generator, Wandering(), Goal(accepted=10, attempts=2))
    assert report.accepted == 10 and report.attempts >= 20
    kept = {record.task.key: record for record in accepted(generator)}
    assert len(kept) == 10 and {record.provenance["attempt"] for record in kept.values()} == {1}
    outranked = [one for one in attempts(generator.store, accepted=False) if one.provenance["refused"] == "outranked"]
    assert len(outranked) == 10 and all(one.provenance["checks"] == "passed" for one in outranked)
    assert all(len(one.steps) > len(kept[one.task.key].steps) for one in outranked)


def test_more_candidates_of_a_slipping_solver_give_more_and_better_episodes(tmp_path: Path) -> None:
    reports, best = {}, {}
    for candidates in (1, 4):
        generator = make_generator("tool_subgraphs", {"people": 40}, GraphStore.create(tmp_path / f"{candidates}.sqlite"))
        goal = Goal(accepted=60, attempts=candidates, patience=1, rounds=1)
        reports[candidates] = self_play(generator, Roles(slip_rate=0.2), goal)
        for record in attempts(generator.store):
            of_task = best.setdefault(record.task.key, {})
            of_task[candidates] = max(of_task.get(candidates, rank(record)), rank(record))
    assert reports[4].accepted >= 1.5 * reports[1].accepted > 0
    assert all(of_task[4] >= of_task[1] for of_task in best.values()), "the first candidate is the same"
    assert sum(of_task[4][0] for of_task in best.values()) >= 1.5 * sum(of_task[1][0] for of_task in best.values())


def test_a_kill_loses_and_doubles_nothing(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, self_play
generator = make_generator("scientific_chains", {}, GraphStore.create(Path(sys.argv[1])))
roles = Roles(slip_rate=0.1, guess_rate=0.2)
self_play(generator, roles, Goal(accepted=150), on_progress=lambda report: print(report.proposed, flush=True))
"""
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "killed.sqlite")], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout):
            if number == 40 + kills:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stdout.close()
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 2
    killed, whole = chains(tmp_path / "killed.sqlite"), chains(tmp_path / "whole.sqlite")
    self_play(whole, IMPERFECT, Goal(accepted=150))
    assert [one.line() for one in attempts(killed.store)] == [one.line() for one in attempts(whole.store)]
    rows = "SELECT number, outcome, attempts FROM proposals ORDER BY number"
    assert killed.store.sql.execute(rows).fetchall() == whole.store.sql.execute(rows).fetchall()


def test_self_play_of_something_else_does_not_go_on_in_a_graph(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    self_play(generator, Roles(), Goal(accepted=2))
    with pytest.raises(UserError, match="another seed"):
        self_play(generator, Roles(), Goal(accepted=4, seed=1))
    assert self_play(generator, Roles(), Goal(accepted=4)).accepted == 4


def test_it_gives_up_where_too_little_is_accepted(tmp_path: Path) -> None:
    report = self_play(chains(tmp_path / "a.sqlite"), Roles(guess_rate=1.0), Goal(accepted=3, patience=5))
    assert report.accepted == 0 and report.proposed == 15 and "15 proposals gave 0" in report.stopped
    assert report.refused["consulted"] == report.attempts


def test_budgets_of_tokens_and_money_stop_it_and_it_goes_on_with_more(tmp_path: Path) -> None:
    for number, bound in enumerate(({"tokens": 1000}, {"money": 0.01, "read_price": 10.0})):
        generator = chains(tmp_path / f"{number}.sqlite")
        solver = Says("unknown")
        report = self_play(generator, Roles(solver=solver, spending=Spending(Budget(**bound))), Goal(accepted=5))
        assert "1100 of 1000 tokens are used" in report.stopped or "are spent" in report.stopped
        assert len(solver.asked) == 10 and report.attempts <= 10
        more = self_play(
            generator, Roles(solver=solver, spending=Spending(Budget(**{**bound, "tokens": 2000, "money": 1.0}))), Goal(accepted=5)
        )
        assert more.attempts > report.attempts and more.tokens >= report.tokens


def test_what_an_unfinished_proposal_used_is_counted_over_all_launches(tmp_path: Path) -> None:
    generator, proposer = chains(tmp_path / "a.sqlite"), Says("no JSON")
    for launch in (1, 2, 3):
        spending = Spending(Budget(tokens=110 * launch, read_price=1e4))
        report = self_play(generator, Roles(proposer=proposer, spending=spending), Goal(accepted=5, attempts=9))
        assert report.is_out_of_budget and report.proposed == report.outcomes["nothing drawn"]
        assert len(proposer.asked) == launch and report.tokens == 110 * launch and report.money == pytest.approx(launch)


def test_requests_are_spread_over_time() -> None:
    spending = Spending(Budget(requests_per_minute=1200))
    start = time.monotonic()
    for _ in range(5):
        spending.wait()
    assert time.monotonic() - start >= 0.2


def test_a_model_s_instruction_is_checked_like_any_other_and_nonsense_is_an_outcome(tmp_path: Path) -> None:
    def names_the_answer(messages: Any) -> dict[str, Any]:
        question = json.loads(messages[-1]["content"])
        return {"role": "assistant", "content": json.dumps({"instruction": f"{question['draft']} It is {question['target']} ."})}

    def rewords(messages: Any) -> dict[str, Any]:
        draft = json.loads(messages[-1]["content"])["draft"]
        return {"role": "assistant", "content": json.dumps({"instruction": draft.replace("What is", "Say what is")})}

    report = self_play(chains(tmp_path / "a.sqlite"), Roles(proposer=Says(names_the_answer)), Goal(accepted=2, patience=3))
    assert report.accepted == 0 and report.refused["unambiguous"] == report.attempts > 0
    nonsense = Says("}{", '{"instruction": 3}', "[" * 9999, SolverFailure("cut off"), '{"other": "x"}')
    report = self_play(chains(tmp_path / "b.sqlite"), Roles(proposer=nonsense), Goal(accepted=2, patience=3))
    assert report.outcomes["nonsense"] + report.outcomes["nothing drawn"] == report.proposed == 6
    generator = chains(tmp_path / "c.sqlite")
    assert self_play(generator, Roles(proposer=Says(rewords)), Goal(accepted=2)).accepted == 2
    assert all(record.task.instruction.startswith("Say what is") for record in accepted(generator))


def test_a_model_verifier_can_only_refuse(tmp_path: Path) -> None:
    yes, no, noise = Says('{"accept": true}'), Says('{"accept": false}'), Says("sure!")
    assert self_play(chains(tmp_path / "a.sqlite"), Roles(verifier=yes), Goal(accepted=2)).accepted == 2
    for number, verifier in enumerate((no, noise)):
        report = self_play(chains(tmp_path / f"{number}.sqlite"), Roles(verifier=verifier), Goal(accepted=2, patience=2))
        assert report.accepted == 0 and report.refused["verifier"] == report.attempts
    guessing = Roles(verifier=Says('{"accept": true}'), guess_rate=1.0)
    assert self_play(chains(tmp_path / "c.sqlite"), guessing, Goal(accepted=2, patience=2)).accepted == 0


def test_a_task_that_is_nearly_an_earlier_one_is_known(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    generator.duplicate_threshold = 0.5
    report = self_play(generator, Roles(), Goal(accepted=20, patience=20))
    assert report.outcomes["known"] > 0


def test_a_refused_region_is_proposed_again_as_another_task_so_often_and_counted(tmp_path: Path) -> None:
    generator = chains(tmp_path / "a.sqlite")
    report = self_play(generator, Roles(guess_rate=1.0), Goal(accepted=1, attempts=1, rounds=3, patience=10))
    assert report.accepted == 0 and report.proposed == 10
    by_proposal: dict[int, list[Any]] = {}
    for record in attempts(generator.store, accepted=False):
        by_proposal.setdefault(record.provenance["proposal"], []).append(record.task)
    assert report.again == sum(len(tasks) - 1 for tasks in by_proposal.values()) > 0
    assert max(len(tasks) for tasks in by_proposal.values()) == 3
    for tasks in by_proposal.values():
        assert len({task.key for task in tasks}) == len(tasks), "another task"
        assert len({task.payload["quantity"] for task in tasks}) == 1, "of the same region"


def test_more_rounds_accept_more_of_as_many_proposals(tmp_path: Path) -> None:
    once, thrice = (
        self_play(chains(tmp_path / f"{rounds}.sqlite"), Roles(guess_rate=0.6), Goal(accepted=20, attempts=1, rounds=rounds))
        for rounds in (1, 3)
    )
    assert once.again == 0 < thrice.again and thrice.proposed < once.proposed
