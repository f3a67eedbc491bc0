"""The report's teachers run from the command line: judged rewards, process credit, mixed tasks, demonstrations without tools."""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.plan import read_plan
from polymath.runtime.ledger import Ledger
from scripted_service import completion, send, serving

from .polymath import REPOSITORY, compile_recipe, job_folder, polymath

RECIPE = REPOSITORY / "recipes" / "agents_a1_teachers_tiny.yaml"
SFT = "steps: 40, batch_sequences: 4, sequence_tokens: 256, learning_rate: 4e-3"
GRPO = "method: grpo, steps: 2, prompts: 3, samples: 4, sequence_tokens: 256, learning_rate: 1e-3"
SHORT = (
    "cluster.per_node=1",
    "placement={sft: {trainer: {devices: 1}}, grpo: {trainer: {devices: 1}}, distill: {trainer: {devices: 1}}}",
    "student.sft.steps=30",
    "student.sft.batch_sequences=4",
    "student.distill.steps=1",
    "student.distill.prompts_per_step.per_domain=1",
    "evaluate={models: [sft, searcher, operator], episodes: 8}",
    *(f"domains.{name}.trajectories[0].synthesize=100" for name in ("search", "instructions", "tools")),
    *(f"domains.{name}.trajectories[{n}].synthesize=50" for name in ("engineering", "scientific_tools") for n in (0, 1)),
    *(f"domains.science.trajectories[{n}].synthesize=50" for n in (0, 1, 2)),
    f"teachers.searcher.phases=[{{method: sft, domains: [search], {SFT}}}, {{domains: [search], reference_kl: 1e-3, {GRPO}}}]",
    f"teachers.instructor.phases=[{{domains: [instructions], settings: {{most: 4}}, {GRPO}}}, {{domains: [instructions], {GRPO}}}]",
    f"teachers.operator.phases=[{{method: sft, domains: [tools], {SFT}}},"
    f" {{domains: [tools], advantage: process, keep_mixed: {{attempts: 4, tasks: 6}}, sampling: {{temperature: 1.5}}, {GRPO}}}]",
    f"teachers.engineer.phases=[{{method: sft, domains: [engineering], trajectories: clean, {SFT}}}]",
    f"teachers.calculator.phases=[{{method: sft, domains: [scientific_tools], trajectories: clean, {SFT}}}]",
    f"teachers.scientist.phases=[{{method: sft, domains: [science], trajectories: reasoning, {SFT}}},"
    f" {{method: sft, domains: [science], trajectories: with-tools, {SFT}}}]",
    "engines.judge={url_env: SCRIPTED_JUDGE, model: scripted, key_env: SCRIPTED_KEY}",
    "domains.search.reward.outcome_by=judge",
    "domains.tools.reward={outcome_by: judge, steps_by: judge, rubric: [it helps, it is short]}",
    "domains.tools.prompts.train=16",
)


@pytest.mark.multi_rank
def test_every_teacher_of_the_report_runs_to_a_scoreboard(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def reply(handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
        shown = json.loads(question["messages"][1]["content"])
        asked.append(shown)
        if len(asked) < 3:
            return send(handler, b"busy", 503)
        if "rubric" in shown:
            return send(handler, completion({"satisfied": [True, len(shown["messages"]) <= 4]}))
        return send(handler, completion({"correct": len(shown["answer"]) % 2 == 0}))

    plan = compile_recipe(RECIPE, tmp_path, *SHORT)
    run_dir = tmp_path / "run"
    with serving(reply) as url:
        environment = {"SCRIPTED_JUDGE": url, "SCRIPTED_KEY": "sk-never-written"}
        done = polymath("launch", plan, "--run-dir", run_dir, environment=environment)
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert {"reference", "rubric"} <= {key for shown in asked for key in shown}
    assert not any(b"sk-never-written" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    searched = Ledger(job_folder(plan, run_dir, "teachers.searcher.2") / "batches").read(0)
    finished = [one for one in searched if one.status == "COMPLETED"]
    assert all(one.outcome == 0.0 for one in searched if one.status != "COMPLETED")
    assert finished and {one.outcome for one in finished} <= {0.0, 1.0}

    folder = job_folder(plan, run_dir, "teachers.operator.2")
    tried = [row for path in sorted((folder / "mixed").glob("tools.*.0.json")) for row in json.loads(path.read_text())["tasks"]]
    mixed = [row["task"] for row in tried if 0 < row["solved"] < 4][:6]
    for index in (0, 1):
        batch = Ledger(folder / "batches").read(index)
        assert {one.task_key for one in batch} <= set(mixed)
        assert {one.process for one in batch} <= {0.5, 1.0}

    written = job_folder(plan, run_dir, "synthesize") / "trajectories" / "science.reasoning.jsonl"
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rows) == 50 and all([one["role"] for one in row["messages"]] == ["user", "assistant"] for row in rows)

    scores = json.loads((run_dir / "scoreboard.json").read_text())
    assert scores
    assert len(read_plan(plan).jobs) > 15
