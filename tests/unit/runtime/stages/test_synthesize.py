"""Demonstrations: the same files however many ranks write them, of training tasks only."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.jobs import is_done
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.stages.synthesize import run, task_order
from polymath.runtime.worlds.base import is_heldout
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Model, TrajectorySource
from polymath.specs.worlds import DRAWN_WORLDS
from stage_contexts import MakeContext, job_of, tools_domain

HABITUAL = TrajectorySource(name="default", synthesize=70, habit_rate=1.0)
TINY = Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words")
CLEAN = TrajectorySource(name="clean", synthesize=5)


def synthesize(make_context: MakeContext, run_name: str, world_size: int, *sources: TrajectorySource) -> Path:
    job = job_of("synthesize", "synthesize", {"domains": {"tools": tools_domain(*sources)}})
    contexts = [make_context(job, run=run_name, rank=rank, world_size=world_size) for rank in range(world_size)]
    for context in reversed(contexts):  # without real barriers the first rank must come last
        run(context)
    assert is_done(contexts[0].folder, job)
    return contexts[0].folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_do_not_depend_on_the_number_of_ranks(make_context: MakeContext) -> None:
    alone, three = (synthesize(make_context, f"run{ranks}", ranks, HABITUAL, CLEAN) for ranks in (1, 3))
    for name in ("tools.default.jsonl", "tools.clean.jsonl"):
        assert (alone / "trajectories" / name).read_bytes() == (three / "trajectories" / name).read_bytes()
    assert not list(three.glob(".staging-*"))


def test_only_training_tasks_are_demonstrated_and_all_of_them_before_any_twice(make_context: MakeContext) -> None:
    folder = synthesize(make_context, "run", 1, HABITUAL)
    tasks = [(line["task"]["domain"], line["task"]["key"]) for line in lines(folder / "trajectories" / "tools.default.jsonl")]
    assert len(tasks) == 70 and len(set(tasks)) == 30
    assert len(set(tasks[:30])) == len(set(tasks[30:60])) == 30
    assert not any(is_heldout(*task) for task in tasks)


def test_the_oracle_solves_what_the_habit_spoils(make_context: MakeContext) -> None:
    folder = synthesize(make_context, "run", 1, HABITUAL, CLEAN)
    found = json.loads((folder / "result.json").read_text())["demonstrations"]
    assert found["tools.clean.jsonl"] == {"count": 5, "tasks": 5, "solved": 5}
    assert 0 < found["tools.default.jsonl"]["solved"] < 70


def test_a_world_with_too_few_tasks_says_so(make_context: MakeContext) -> None:
    domain = {**tools_domain(CLEAN), "prompts": {"train": 10**6, "heldout": 10}}
    with pytest.raises(UserError, match="domain `tools`") as caught:
        run(make_context(job_of("synthesize", "synthesize", {"domains": {"tools": domain}})))
    assert caught.value.exit_code == 3


def test_every_pass_over_the_tasks_is_shuffled_anew() -> None:
    order = task_order(10, 25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10)) and order[:10] != order[10:20]
    assert order == task_order(10, 25, seed=3) and order[:20] == task_order(10, 20, seed=3)


@pytest.mark.parametrize("name", sorted(DRAWN_WORLDS))
def test_a_written_demonstration_reads_as_the_model_will_act(make_context: MakeContext, name: str) -> None:
    """What SFT learns from a row and what a rollout expects of the same world are the same tokens."""
    domain = {**tools_domain(CLEAN), "world": name, "settings": {}}
    run(context := make_context(job_of("synthesize", "synthesize", {"domains": {"tools": domain}})))
    tokenizer, world = load_tokenizer(TINY), make_world(name, {})
    for line in lines(context.folder / "trajectories" / "tools.clean.jsonl"):
        as_written = Renderer(tokenizer, line["tools"]).render(line["messages"])
        assert as_written == Renderer(tokenizer, world.tools).render(line["messages"])


def self_played(make_context: MakeContext, run_name: str, world_size: int, world: str, source: TrajectorySource) -> Path:
    """The folder of a job whose ranks play together, each in a thread."""
    domain = {**tools_domain(source), "world": world}
    job = job_of("synthesize", "synthesize", {"domains": {"tools": domain}})
    barrier = threading.Barrier(world_size, timeout=30)
    contexts = [make_context(job, run=run_name, rank=rank, world_size=world_size) for rank in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        for done in [pool.submit(run, replace(context, barrier=barrier.wait)) for context in contexts]:
            done.result()
    return contexts[0].folder


def graph_of(folder: Path) -> list[Any]:
    """What self-play wrote into the graph of a job."""
    with GraphStore.open(str(folder / "tools.default.sqlite")) as store:
        tables = ("nodes", "edges", "steps", "attempts", "proposals", "bands", "signatures")
        return [store.sql.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall() for table in tables]


@pytest.mark.parametrize("world", ["scientific_chains", "constraints"])
def test_what_is_played_does_not_depend_on_the_number_of_ranks(make_context: MakeContext, world: str) -> None:
    source = TrajectorySource(name="default", synthesize=20, slip_rate=0.15, habit_rate=0.2)
    alone, three = (self_played(make_context, f"run{ranks}", ranks, world, source) for ranks in (1, 3))
    name = "trajectories/tools.default.jsonl"
    assert (alone / name).read_bytes() == (three / name).read_bytes() and len(lines(alone / name)) == 20
    assert graph_of(alone) == graph_of(three)
    assert json.loads((alone / "result.json").read_text()) == json.loads((three / "result.json").read_text())
    assert not list(three.glob(".staging-*"))


def test_a_world_that_writes_its_own_tasks_is_played_with_itself(make_context: MakeContext) -> None:
    folder = self_played(make_context, "run", 2, "tool_subgraphs", TrajectorySource(name="default", synthesize=12, slip_rate=0.1))
    written = lines(folder / "trajectories" / "tools.default.jsonl")
    assert len(written) == 12 and all(line["reward"] == 1.0 for line in written)
    assert not any(is_heldout("tool_subgraphs", line["task"]["key"]) for line in written)
    found = json.loads((folder / "result.json").read_text())["demonstrations"]["tools.default.jsonl"]
    assert found["solved"] == 12 and found["self_play"]["accepted"] == 12 and found["self_play"]["refused"]
