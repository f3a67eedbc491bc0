"""Tasks that a run evaluates on are found in what it trains on, in users' files and its own; a warning, or the end of the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.plan import Input
from polymath.runtime.jobs import JobContext, is_done
from polymath.runtime.launch.run import what_became_of_rows
from polymath.runtime.stages.contamination import run
from polymath.runtime.stages.evaluate import heldout_tasks
from polymath.runtime.stages.synthesize import run as synthesize
from polymath.runtime.worlds.registry import make_world
from polymath.specs.build import to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Contamination, TrajectorySource
from stage_contexts import MakeContext, job_of, tools_domain

EPISODES = 10
SOURCES = (TrajectorySource(name="default", synthesize=8), TrajectorySource(name="own", path="rows.jsonl"))


def question(number: int) -> str:
    world = make_world("tools", {})
    return str(world.start(heldout_tasks(world, "tools", EPISODES, 7)[number]).opening()[-1]["content"])


@pytest.fixture
def look(make_context: MakeContext, tmp_path: Path) -> Any:
    def at(texts: list[str], **settings: Any) -> JobContext:
        rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "no"}]} for text in texts]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        domains: Mapping[str, Any] = {"tools": tools_domain(*SOURCES)}
        writing = job_of("synthesize", "synthesize", {"domains": {"tools": tools_domain(SOURCES[0])}})
        synthesize(make_context(writing))
        inputs = {
            "trajectories.tools.0": Input(job="synthesize", output="trajectories"),
            "source.tools.1": Input(source="source.tools.1"),
        }
        block = {"domains": domains, "episodes": EPISODES, "contamination": to_json(Contamination(**settings))}
        job = job_of("contamination", "contamination", block, inputs)
        return make_context(writing, job, urls={"source.tools.1": "rows.jsonl"})

    return at


def events(context: JobContext) -> list[dict[str, Any]]:
    path = context.run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_held_out_task_in_a_user_s_file_is_an_event_a_line_and_a_report(look: Any) -> None:
    run(context := look(["something else", question(3).upper()]))
    found = json.loads((context.folder / "contamination.json").read_text())
    written, own = found["sources"]
    assert (written["rows"], written["contaminated_rows"], own["rows"], own["contaminated_rows"]) == (8, 0, 2, 1)
    assert own["examples"] == [{"row": 2, "task": "tools:3", "kind": "exact", "question": question(3)}]
    (event,) = events(context)
    assert event["event"] == "contamination" and event["rows"] == 1 and event["action"] == "warn"
    (line,) = what_became_of_rows(context.folder)
    assert "1 of 2 rows hold tasks of the evaluations" in line
    assert is_done(context.folder, context.job)
    assert json.loads((context.folder / "progress.json").read_text())["done"] == len(found["sources"])


def test_a_spec_may_refuse_them(look: Any) -> None:
    context = look([question(0)], action="refuse")
    with pytest.raises(UserError, match="refuses them") as caught:
        run(context)
    assert caught.value.exit_code == 3 and not is_done(context.folder, context.job)
    assert (context.folder / "contamination.json").exists() and str(context.folder) in str(caught.value.fix)
    run(clean := look(["something else"], action="refuse"))
    assert is_done(clean.folder, clean.job)


def test_questions_of_a_template_are_alike_only_where_the_spec_says_how_much(look: Any) -> None:
    """The world's own training tasks share most words with its held-out ones, and are other tasks."""
    run(context := look(["something else"]))
    assert json.loads((context.folder / "contamination.json").read_text())["clean"] and not events(context)
    run(context := look(["something else"], similarity=0.2))
    found = json.loads((context.folder / "contamination.json").read_text())
    assert found["sources"][0]["heldout_tasks"]["near"] > 0 and found["sources"][0]["heldout_tasks"]["exact"] == 0
