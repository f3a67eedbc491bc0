"""Who plays in a job: endpoints that a spec names, within their budget, and models of the run."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.abilities import refuse_what_cannot_run
from polymath.runtime.jobs import JobContext
from polymath.runtime.knowledge.generators.base import ScriptedSolver
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.stages.on_policy import derived_seed
from polymath.runtime.stages.synthesize import run
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Service
from polymath.specs.model import TrajectorySource
from polymath.specs.self_play import Budget, SelfPlay
from scripted_service import send, serving
from stage_contexts import MakeContext, job_of, tools_domain

SOLVER = Service(url_env="SCRIPTED_SOLVER", model="scripted", key_env="SCRIPTED_KEY")
JOB = "synthesize.tools.solved"


class Oracle:
    """What an endpoint would say that knows every task of the job."""

    def __init__(self) -> None:
        self.generator = make_generator("scientific_chains", {})
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
            if one["role"] == "tool":
                message = solver.next([one])
        usage = {"prompt_tokens": 90, "completion_tokens": 10}
        send(handler, json.dumps({"choices": [{"message": message}], "usage": usage}).encode())


@pytest.fixture
def play(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Any:
    def at(url: str, budget: Budget) -> JobContext:
        monkeypatch.setenv("SCRIPTED_SOLVER", url)
        monkeypatch.setenv("SCRIPTED_KEY", "sk-never-written")
        source = TrajectorySource(name="solved", synthesize=4, self_play=SelfPlay(solver=SOLVER, budget=budget))
        domain = {**tools_domain(source), "world": "scientific_chains"}
        domain["limits"] |= {"turns": 12, "response_tokens": 77, "context_tokens": 4096}
        return make_context(job_of(JOB, "synthesize", {"domains": {"tools": domain}}))

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
        with pytest.raises(UserError, match="of 900 tokens are used") as caught:
            run(play(url, Budget(tokens=900)))
        assert caught.value.exit_code == 6 and "self_play.budget" in str(caught.value.fix)
        first = {question["messages"][0]["content"] for question in oracle.asked[:3]}
        oracle.asked.clear()
        run(context := play(url, Budget(tokens=100_000)))
    assert not first & {question["messages"][0]["content"] for question in oracle.asked}, "what was finished is not played again"
    assert len((context.folder / "trajectories" / "tools.solved.jsonl").read_text().splitlines()) == 4


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
