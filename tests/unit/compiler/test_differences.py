"""`diff`: what changes the weights, what only the placement, what only names; which jobs run again, and which line is the cause."""

import json
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.differences import Difference, compare
from polymath.compiler.driver import compile_spec, plan_of
from polymath.runtime.cli import main
from polymath.specs.fields import Identity
from polymath.specs.tree import all_nodes, find_nodes, identity_of

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"


def differ(*overrides: str) -> Difference:
    return compare(*plan_of(TEMPLATE), *plan_of(TEMPLATE, overrides))


def test_the_same_spec_does_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compile_spec(TEMPLATE, tmp_path / "plan")
    assert not differ()
    assert main(["diff", str(TEMPLATE), str(tmp_path / "plan")]) == 0
    assert capsys.readouterr().out == "nothing differs\n"


def test_a_learning_rate_reruns_its_job_and_all_that_follow_and_names_the_line(tmp_path: Path) -> None:
    text = TEMPLATE.read_text()
    (tmp_path / "my.yaml").write_text(text.replace("learning_rate: 4e-3", "learning_rate: 1e-4"))
    found = compare(*plan_of(TEMPLATE), *plan_of(tmp_path / "my.yaml"))
    (change,) = found.changes
    assert (change.path, change.identity, change.before, change.after) == ("student.sft.learning_rate", "numerics", 4e-3, 1e-4)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "learning_rate: 4e-3" in row)
    causes = {rerun.job: rerun.causes for rerun in found.reruns}
    assert causes["sft"] == (f"student.sft.learning_rate (my.yaml:{line})",)
    assert causes["distill"] == ("follows sft", "follows teachers.operator.1", "follows teachers.searcher.1")
    assert {"import", "synthesize"} <= set(found.reused)


@pytest.mark.parametrize(
    ("override", "identity", "reruns", "replaced"),
    [
        ("placement.sft.trainer.micro_batch=8", "placement", False, True),
        ("checkpoint.every_steps=3", "placement", False, True),
        ("storage.runs=elsewhere", "label", False, False),
        ("student.distill.alarms.coverage_p05.below=0.25", "label", False, False),
        ("student.distill.diagnostics.every_steps=3", "label", False, False),
        ("evaluate.temperature=1", "numerics", True, False),
    ],
)
def test_changes_are_told_apart(override: str, identity: str, reruns: bool, replaced: bool) -> None:
    found = differ(override)
    assert found and {one.identity for one in found.changes} == {identity}
    assert (bool(found.reruns), bool(found.replaced)) == (reruns, replaced)
    assert all(one.origin == f"--set {override}" for one in found.changes if one.path == override.split("=")[0])


@pytest.mark.parametrize(("action", "identity"), [("warn", "label"), ("stop", "label"), ("skip", "numerics")])
def test_an_alarm_reruns_a_job_only_where_it_skips_updates(action: str, identity: str) -> None:
    found = differ(f"student.distill.alarms.truncated={{above: 0.5, action: {action}}}")
    assert {one.identity for one in found.changes} == {identity}
    assert ("distill" in {one.job for one in found.reruns}) == (action == "skip")


def test_the_threshold_of_an_alarm_that_skips_updates_decides_the_weights() -> None:
    skip = "student.distill.alarms.coverage_p05={below: 0.5, action: skip}"
    threshold = "student.distill.alarms.coverage_p05.below=0.25"
    found = compare(*plan_of(TEMPLATE, [skip]), *plan_of(TEMPLATE, [skip, threshold]))
    assert [(one.path.rpartition(".")[2], one.identity) for one in found.changes] == [("below", "numerics")]
    assert {one.job: one.causes for one in found.reruns}["distill"] == (
        f"student.distill.alarms.coverage_p05.below (--set {threshold})",
    )


def test_a_new_seed_reruns_everything() -> None:
    found = differ("seed=8")
    assert not found.reused
    assert all("seed (--set seed=8)" in rerun.causes for rerun in found.reruns)


def test_jobs_come_and_go() -> None:
    found = differ("evaluate.continued_sft=true")
    assert {rerun.job: rerun.causes for rerun in found.reruns}["sft_continued"] == ("new",)
    back = compare(*plan_of(TEMPLATE, ["evaluate.continued_sft=true"]), *plan_of(TEMPLATE))
    assert set(back.removed) == {"sft_continued", "evaluate.sft_continued"}


def test_data_counts_by_what_it_holds(tmp_path: Path) -> None:
    text = TEMPLATE.read_text().replace("{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}", "{path: a.jsonl}", 1)
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text("{}\n")
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text.replace("a.jsonl", "b.jsonl"))
    moved = compare(*plan_of(tmp_path / "a.yaml"), *plan_of(tmp_path / "b.yaml"))
    assert [one.identity for one in moved.changes] == ["label"] and not moved.reruns
    before = plan_of(tmp_path / "a.yaml")
    (tmp_path / "a.jsonl").write_text('{"messages": []}\n')
    found = compare(*before, *plan_of(tmp_path / "a.yaml"))
    assert found.changes[0].path == "content of source.search.0"
    assert "content of source.search.0 (the data)" in {rerun.job: rerun.causes for rerun in found.reruns}["sft"]


def test_a_plan_without_origins_still_says_which_setting(tmp_path: Path) -> None:
    for name, overrides in (("a", ()), ("b", ("student.sft.learning_rate=1e-4",))):
        compile_spec(TEMPLATE, tmp_path / name, overrides)
        (tmp_path / name / "origins.json").unlink()
    found = compare(*plan_of(tmp_path / "a"), *plan_of(tmp_path / "b"))
    assert {rerun.job: rerun.causes for rerun in found.reruns}["sft"] == ("settings.stage.learning_rate",)


def test_the_verb_exits_2_and_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compile_spec(TEMPLATE, tmp_path / "a", ["seed=8", "storage.runs=x", "placement.sft.trainer.micro_batch=8"])
    assert main(["diff", str(TEMPLATE), str(tmp_path / "a")]) == 2
    shown = capsys.readouterr().out
    for line in ("numerics (", "placement (", "label (", "  seed: 7 -> 8   # --set seed=8", "jobs that run again"):
        assert line in shown
    assert main(["diff", str(TEMPLATE), str(tmp_path / "a"), "--json"]) == 2
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["differs"] and {"seed", "storage.runs"} <= {one["path"] for one in answer["changes"]}


@pytest.mark.parametrize("form", ["mermaid", "dot", "text"])
def test_a_graph_names_every_job_once_and_every_edge(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = compile_spec(SMOKE, tmp_path / "plan")
    assert main(["graph", str(tmp_path / "plan"), "--format", form]) == 0
    shown = capsys.readouterr().out
    assert main(["graph", str(SMOKE), "--format", form]) == 0
    assert capsys.readouterr().out == shown
    edges = sum(len(job.needs) for job in plan.jobs)
    if form == "text":
        assert [line.split()[0] for line in shown.splitlines()[1:]] == [job.id for job in plan.jobs]
        assert "sft           " in shown and shown.splitlines()[0].split() == ["job", "kind", "devices", "after"]
    else:
        assert shown.count("-->" if form == "mermaid" else "->") == edges
        assert all(f'"{job.id}"' in shown for job in plan.jobs)


def test_every_path_of_the_language_is_found_again() -> None:
    for node in all_nodes():
        assert node in find_nodes(node.path), node.path
    assert {node.owner.__name__ for node in find_nodes("teachers.a.phases[0].steps")} == {"SftPhase", "GrpoPhase"}
    assert identity_of("student.distill.alarms.coverage_p05.below") == Identity.LABEL
    assert identity_of("placement.sft.trainer.expert") == Identity.PLACEMENT
    assert identity_of("domains.x.settings.hops") == Identity.NUMERICS
