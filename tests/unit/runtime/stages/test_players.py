"""Who plays in a job: endpoints that a spec names, within their budget, and models of the run."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.abilities import refuse_what_cannot_run
from polymath.runtime.jobs import JobContext
from polymath.runtime.knowledge.branches import attempts
from polymath.runtime.knowledge.generators.base import ScriptedSolver
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.stages.on_policy import derived_seed
from polymath.runtime.stages.synthesize import run
from polymath.specs.build import to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Service
from polymath.specs.model import TrajectorySource
from polymath.specs.self_play import Budget, SelfPlay
from scripted_service import completion, send, serving
from stage_contexts import MakeContext, job_of, tools_domain

SOLVER = Service(url_env="SCRIPTED_SOLVER", model="scripted", key_env="SCRIPTED_KEY")
JOB = "synthesize.tools.solved"
FORCED = "Say it now."


class Oracle:
    """What an endpoint would say that knows every task of the job."""

    def __init__(self, world: str = "scientific_chains") -> None:
        self.generator = make_generator(world, {})
        seed = derived_seed(5, "tools", "solved")
        drawn = (self.generator.draw(random.Random(f"{seed}:{number}")) for number in range(200))
        self.tasks = {task.instruction: task for task in drawn if task is not None}
        self.asked: list[dict[str, Any]] = []

    def __call__(self, handler: Any, question: dict[str, Any]) -> None:
        assert handler.headers["Authorization"] == "Bearer sk-never-written"
        self.asked.append(question)
        first, *rest = question["messages"]
        solver = ScriptedSolver(self.generator, self.tasks[first["content"]], seed=0)
        message = solver.next([])
        for one in rest:
            if one["role"] != "assistant" and one["content"] != FORCED:
                message = solver.next([one])
        usage = {"prompt_tokens": 90, "completion_tokens": 10}
        send(handler, json.dumps({"choices": [{"message": message}], "usage": usage}).encode())


@pytest.fixture
def play(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Any:
    def at(
        url: str, budget: Budget, *, world: str = "scientific_chains", wanted: int = 4, run: str = "run", **domain_says: Any
    ) -> JobContext:
        monkeypatch.setenv("SCRIPTED_SOLVER", url)
        monkeypatch.setenv("SCRIPTED_KEY", "sk-never-written")
        played = SelfPlay(solver=SOLVER, attempts=1, rounds=1, budget=budget)
        domain = {**tools_domain(TrajectorySource(name="solved", synthesize=wanted, self_play=played)), "world": world}
        domain["limits"] |= {"turns": 24, "response_tokens": 77, "context_tokens": 9000, **domain_says.pop("limits", {})}
        domain |= domain_says
        return make_context(job_of(JOB, "synthesize", {"domains": {"tools": domain}}), run=run)

    return at


def test_an_endpoint_that_the_spec_names_solves_and_its_key_is_never_written(play: Any) -> None:
    oracle = Oracle()
    with serving(oracle) as url:
        run(context := play(url, Budget()))
    rows = [json.loads(line) for line in (context.folder / "trajectories" / "tools.solved.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["reward"] == 1.0 and row["provenance"]["solver"] == "scripted" for row in rows)
    report = json.loads((context.folder / "result.json").read_text())["demonstrations"]["tools.solved.jsonl"]["self_play"]
    assert report["tokens"] == 100 * len(oracle.asked)
    assert {question["max_tokens"] for question in oracle.asked} == {77}
    assert not any(b"sk-never-written" in path.read_bytes() for path in context.run_dir.rglob("*") if path.is_file())


def test_a_budget_that_is_used_up_ends_the_job_and_a_larger_one_goes_on(play: Any) -> None:
    oracle = Oracle()
    with serving(oracle) as url:
        with pytest.raises(UserError, match=r"of 1500 tokens are used; [123] of 4") as caught:
            run(context := play(url, Budget(tokens=1500)))
        assert caught.value.exit_code == 6 and "self_play.budget" in str(caught.value.fix)
        context = play(url, Budget(tokens=100_000))
        with GraphStore.open(str(context.folder / "tools.solved.sqlite")) as store:
            finished = {record.task.instruction for record in attempts(store)}
        assert finished
        oracle.asked.clear()
        run(context)
    assert not finished & {question["messages"][0]["content"] for question in oracle.asked}, "it is not played again"
    assert len((context.folder / "trajectories" / "tools.solved.jsonl").read_text().splitlines()) == 4


def test_the_limits_of_the_domain_bound_a_model(play: Any) -> None:
    oracle = Oracle()
    with serving(oracle) as url, pytest.raises(UserError, match="proposals gave 0 accepted tasks"):
        run(context := play(url, Budget(), wanted=1, limits={"tool_calls": 1, "finalize": {"prompt": FORCED}}))
    with GraphStore.open(str(context.folder / "tools.solved.sqlite")) as store:
        played = list(attempts(store))
    asked = [question["messages"] for question in oracle.asked]
    assert {record.status for record in played} == {"calls"}, "the oracle calls on"
    assert sum(messages[-1]["content"] == FORCED for messages in asked) == len(played) > 0
    with serving(oracle) as url, pytest.raises(UserError, match="proposals gave 0 accepted tasks"):
        run(context := play(url, Budget(), wanted=1, limits={"wall_seconds": 1e-6}, run="late"))
    with GraphStore.open(str(context.folder / "tools.solved.sqlite")) as store:
        assert {record.status for record in attempts(store)} == {"time"}


def test_the_user_of_the_domain_speaks_where_a_model_solves_and_ends_the_job_where_it_is_silent(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    says, dialogues = {"status": 200}, []

    def talk(handler: Any, question: dict[str, Any]) -> None:
        shown = json.loads(question["messages"][1]["content"])
        name = shown["brief"].split("The name is ")[1].split(".")[0]
        is_asked = shown["dialogue"][-1]["text"].endswith("?")
        dialogues.append(shown["dialogue"])
        verdict = {"say": f"The name is {name}."} if is_asked else {"end": True}
        send(handler, completion(verdict), status=says["status"])

    monkeypatch.setenv("SCRIPTED_KEY", "sk-never-written")
    oracle = Oracle("tool_subgraphs")
    with serving(oracle) as url, serving(talk) as user_url:
        monkeypatch.setenv("SCRIPTED_USER", user_url)
        user = to_json(Service(url_env="SCRIPTED_USER", model="talker", key_env="SCRIPTED_KEY"))
        run(context := play(url, Budget(), world="tool_subgraphs", user=user))
        rows = [json.loads(line) for line in (context.folder / "trajectories" / "tools.solved.jsonl").read_text().splitlines()]
        heard = [one["content"] for row in rows for one in row["messages"][1:] if one["role"] == "user"]
        report = json.loads((context.folder / "result.json").read_text())["demonstrations"]["tools.solved.jsonl"]["self_play"]
        assert len(rows) == len(heard) == 4 and len(dialogues) == 2 * report["attempts"], "asked once, and told once"
        assert report["tokens"] > 100 * len(oracle.asked), "what the user reads and writes counts too"
        says["status"] = 403
        with pytest.raises(UserError, match=r"the simulated user .* gave no reply") as caught:
            run(play(url, Budget(), world="tool_subgraphs", user=user, run="silent"))
        assert caught.value.exit_code == 6


def test_an_endpoint_that_the_environment_does_not_name_is_missed_before_anything_starts(
    play: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = play("http://127.0.0.1:1/v1", Budget())
    monkeypatch.delenv("SCRIPTED_SOLVER")
    with pytest.raises(UserError, match=r"self_play\.solver\.url_env: SCRIPTED_SOLVER is not set") as caught:
        refuse_what_cannot_run(context.plan, context.sources, [context.job])
    assert caught.value.exit_code == 5
    monkeypatch.setenv("SCRIPTED_SOLVER", "https://models.example.org/v1")
    with pytest.raises(UserError, match="another machine"):
        refuse_what_cannot_run(context.plan, context.sources, [context.job])
