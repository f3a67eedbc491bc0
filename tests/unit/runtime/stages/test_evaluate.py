"""Evaluating: every subject tries the same held-out tasks, and ranks share them without changing the order."""

import json
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.jobs import is_done
from polymath.runtime.stages.evaluate import heldout_tasks, merge, run
from polymath.runtime.stages.import_model import run as run_import
from polymath.runtime.worlds.base import is_heldout
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import UserError
from stage_contexts import MakeContext, evaluate_job, import_job


def evaluate(make_context: MakeContext, subject: str, world_size: int = 1) -> dict[str, Any]:
    job = evaluate_job(subject)
    contexts = [make_context(import_job(), job, rank=rank, world_size=world_size) for rank in range(world_size)]
    if not contexts[0].folder_of(contexts[0].plan.job("import")).exists():
        run_import(make_context(import_job()))
    for context in reversed(contexts):  # without real barriers the first rank must come last
        run(context)
    assert is_done(contexts[0].folder, job)
    return json.loads((contexts[0].folder / "result.json").read_text())


def test_every_subject_tries_the_same_tasks_however_many_ranks_share_them(make_context: MakeContext) -> None:
    first, second = evaluate(make_context, "sft"), evaluate(make_context, "student", world_size=2)
    assert (first["subject"], second["subject"]) == ("sft", "student")
    one, other = first["domains"]["tools"], second["domains"]["tools"]
    assert one["tasks_digest"] == other["tasks_digest"] and one["episodes"] == other["episodes"] == 12
    # Both subjects are the same random weights here, and greedy.
    assert one["outcomes"] == other["outcomes"] and one["truncated"] == other["truncated"]


def test_episodes_are_distinct_held_out_tasks() -> None:
    tasks = heldout_tasks(make_world("tools", {}), "tools", 200, 7)
    assert len({task.key for task in tasks}) == 200 and all(is_heldout(task.world, task.key) for task in tasks)


def test_too_many_episodes_are_refused_with_what_to_change() -> None:
    with pytest.raises(UserError) as caught:
        heldout_tasks(make_world("tools", {}), "tools", 10**6, 7)
    assert caught.value.exit_code == 3 and "evaluate.episodes" in str(caught.value.fix)


def test_parts_are_put_back_in_the_order_of_the_tasks() -> None:
    tasks = heldout_tasks(make_world("tools", {}), "tools", 5, 7)
    merged = merge(
        [{"outcomes": [1.0, 0.0, 1.0], "truncated": 1, "forced": 1}, {"outcomes": [0.0, 1.0], "truncated": 0, "forced": 2}], tasks
    )
    assert merged["outcomes"] == [1.0, 0.0, 0.0, 1.0, 1.0] and (merged["truncated"], merged["forced"]) == (1, 3)
    assert merged["score"] == 0.6 and merged["ci95"][0] < 0.6 < merged["ci95"][1]


def test_a_changed_model_is_refused(make_context: MakeContext) -> None:
    started = make_context(import_job())
    run_import(started)
    weights = started.folder / "model" / "model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    Path(weights).write_bytes(flipped)
    with pytest.raises(UserError, match="sha256") as caught:
        run(make_context(import_job(), evaluate_job("sft")))
    assert caught.value.exit_code == 4
