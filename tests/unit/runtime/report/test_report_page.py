"""The page and the scoreboard of a run whose files were written by hand."""

import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.plan import Input, Job, Plan, Role, Sources, compiler_version, read_plan, read_sources
from polymath.compiler.store import write_plan
from polymath.runtime.files import describe_files, write_json
from polymath.runtime.launch.events import EventLog
from polymath.runtime.report.page import write_report
from polymath.runtime.report.scoreboard import write_scoreboard
from polymath.specs.build import to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Cluster

EVIL = '"><script>alert(1)</script>'
DOMAINS = ("search", "tools")


def make_job(job_id: str, kind: str, settings: dict[str, Any], needs: tuple[str, ...] = ()) -> Job:
    return Job(
        id=job_id,
        kind=kind,
        needs=needs,
        seed=1,
        recipe_digest=hashlib.sha256(job_id.encode()).hexdigest(),
        exact_digest="0" * 64,
        roles={"trainer": Role(devices=1, torchrun=(), environment={})},
        inputs={need: Input(job=need, output="model") for need in needs},
        settings=settings,
    )


def demonstrator(name: str) -> dict[str, Any]:
    return {"trajectories": [{"name": name, "synthesize": 100, "habit_rate": 0.65, "slip_rate": 0.08}]}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of two domains with one teacher."""
    domains = {name: demonstrator(EVIL) for name in DOMAINS}
    jobs = [
        make_job("import", "import", {}),
        make_job("synthesize", "synthesize", {"domains": domains}),
        make_job("sft", "sft", {"domains": domains}, ("import", "synthesize")),
        make_job("teachers.pro.1", "grpo", {"domains": domains}, ("sft",)),
        make_job("distill", "distill", {"domains": domains, "routing": dict.fromkeys(DOMAINS, "pro")}, ("sft", "teachers.pro.1")),
        *(make_job(f"evaluate.{name}", "evaluate", {"subject": name, "domains": domains}, ("distill",)) for name in SCORES),
    ]
    plan = Plan(
        name="tiny",
        seed=7,
        compiler=compiler_version(),
        recipe_digest="a" * 64,
        exact_digest="b" * 64,
        cluster=Cluster(accelerator="cpu", per_node=2),
        jobs=tuple(jobs),
        processes=(tuple(job.id for job in jobs),),
    )
    folder = tmp_path / "runs" / "tiny"
    write_plan(plan, Sources(spec_folder=str(tmp_path), runs="runs", urls={}), folder / "plan")
    events = EventLog(folder)
    for job in jobs:
        events.write("job_started", job=job.id, reason="to run")
        finish(folder, job)
        events.write("job_finished", job=job.id, seconds=75.0)
    return folder


SCORES = {"base": 0, "sft": 40, "pro": 90, "student": 80}


def finish(folder: Path, job: Job) -> None:
    place = folder / "jobs" / job.folder
    result: dict[str, Any] = {}
    if job.kind == "evaluate":
        solved = SCORES[job.settings["subject"]]
        one = {"episodes": 100, "score": solved / 100, "truncated": 2, "forced": 3, "tasks_digest": "x"}
        one["outcomes"] = [1.0] * solved + [0.0] * (100 - solved)
        result = {"subject": job.settings["subject"], "domains": dict.fromkeys(DOMAINS, one)}
    if job.kind == "sft":
        source = {"url": f"/data/{EVIL}.jsonl", "rows": 12, "kept": 9, "filtered": {f"reward {EVIL}": 3}, "truncated": {}}
        result = {"sources": [source]}
    write_json(place / "result.json", result)
    if job.kind in ("sft", "distill"):
        lines = [{"step": step, "steps": 9, "loss": 3.0 / step, "coverage_mean": 0.9, "coverage_p05": 0.8} for step in range(1, 10)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 10, "lo')
    files = describe_files(place, ["result.json"])
    write_json(place / "DONE.json", {"job": job.id, "recipe_digest": job.recipe_digest, "files": files})


class Outline(HTMLParser):
    """Elements of a page; fails where an element is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    assert not found.open
    return found


def test_the_scoreboard_holds_fractions_gains_and_their_intervals(run_dir: Path) -> None:
    scoreboard = write_scoreboard(run_dir)
    assert json.loads((run_dir / "scoreboard.json").read_text()) == scoreboard
    search = scoreboard["domains"]["search"]
    assert [search[row] for row in ("base", "sft", "teacher", "student", "sft_continued")] == [0.0, 0.4, 0.9, 0.8, None]
    assert search["teacher_name"] == "pro" and search["episodes"]["student"] == 100 and search["truncated"]["sft"] == 2
    assert search["forced"]["sft"] == 3 and "2 cut, 3 forced" in write_report(run_dir).read_text()
    assert search["recovered_gain"] == pytest.approx(0.8)
    low, high = search["recovered_gain_ci95"]
    assert 0.65 < low < 0.8 < high < 0.95
    assert scoreboard["mean_recovered_gain"] == pytest.approx(0.8)
    mean_low, mean_high = scoreboard["mean_recovered_gain_ci95"]
    assert low < mean_low < 0.8 < mean_high < high  # two domains say more than one
    assert scoreboard["complete"]


def test_the_scoreboard_of_an_unfinished_run_holds_what_is_known(run_dir: Path) -> None:
    for path in (run_dir / "jobs").glob("evaluate.student-*/DONE.json"):
        path.unlink()
    scoreboard = write_scoreboard(run_dir)
    search = scoreboard["domains"]["search"]
    assert search["teacher"] == 0.9 and search["student"] is None and search["recovered_gain"] is None
    assert scoreboard["mean_recovered_gain"] is None and not scoreboard["complete"]


def test_subjects_that_tried_other_tasks_are_never_compared(run_dir: Path) -> None:
    path = next((run_dir / "jobs").glob("evaluate.sft-*")) / "result.json"
    path.write_text(path.read_text().replace('"tasks_digest": "x"', '"tasks_digest": "y"'))
    with pytest.raises(ValueError, match="different tasks"):
        write_scoreboard(run_dir)


def test_the_page_loads_nothing_and_runs_nothing(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", page)
    for name, attributes in outline(page).elements:
        assert name not in ("script", "link", "iframe", "img", "object", "embed", "base", "form")
        assert not {"src", "href", "onload", "onclick", "onerror"} & attributes.keys()


def test_names_that_are_markup_stay_text(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "<script" not in page
    assert "&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_every_chart_says_what_it_shows(run_dir: Path) -> None:
    elements = outline(write_report(run_dir).read_text()).elements
    pictures = [attributes for name, attributes in elements if name == "svg"]
    assert len(pictures) > 5
    for attributes in pictures:
        assert attributes.get("aria-hidden") == "true" or (attributes.get("role") == "img" and attributes.get("aria-label"))
    for label in ("Job graph", "Scores by domain", "Recovered gain", "distill · coverage", "sft · loss"):
        assert any(str(attributes.get("aria-label")).startswith(label) for attributes in pictures), label


def test_the_page_says_that_the_demonstrator_is_imperfect_only_where_it_is(run_dir: Path) -> None:
    assert "imperfect demonstrator" in write_report(run_dir).read_text()
    page = write_report(rewritten(run_dir, '"habit_rate": 0.65', '"habit_rate": 0.0', '"slip_rate": 0.08', '"slip_rate": 0.0'))
    assert "imperfect demonstrator" not in page.read_text()


def test_the_page_says_what_became_of_the_data(run_dir: Path) -> None:
    page = write_report(run_dir).read_text()
    assert "3 reward " in page and ">12<" in page and ">9<" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_report(tmp_path)
    assert caught.value.exit_code == 64


def rewritten(run_dir: Path, *changes: str) -> Path:
    """The run with its plan written anew, so that the plan still verifies."""
    plan, sources = read_plan(run_dir / "plan"), read_sources(run_dir / "plan")

    def change(settings: Any) -> Any:
        text = json.dumps(settings)
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            text = text.replace(old, new)
        return json.loads(text)

    jobs = tuple(replace(job, settings=change(to_json(job.settings))) for job in plan.jobs)
    write_plan(replace(plan, jobs=jobs), sources, run_dir / "plan")
    return run_dir
