"""Sweeps whose jobs are written by hand: what is shared, what the figures are, and how a sweep stops, fails and goes on."""

import json
import os
import signal
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.driver import publish
from polymath.compiler.plan import Job, read_plan
from polymath.compiler.sweep import compile_sweep
from polymath.runtime.cli import main
from polymath.runtime.files import describe_files, write_json
from polymath.runtime.jobs import DONE, STOP_REQUEST, Outcome
from polymath.runtime.launch.process import Group
from polymath.runtime.sweep.figures import Figures
from polymath.runtime.sweep.parts import SweepParts, SweepRun, plan_folder_of, run_dir_of
from polymath.runtime.sweep.run import run_sweep
from polymath.specs.diagnostics import ExitCode, UserError

SMOKE = Path(__file__).parents[4] / "recipes" / "smoke.yaml"
SWEEP = """polymath_sweep: 1
name: small
base: smoke.yaml
seeds: [11, 12]
rows:
  routed: {title: "Routed | k = 8"}
  k2: {seeds: [11], change: {student: {distill: {loss: {support: {top_k: 2}}}}}}
  continued: {subject: sft_continued}
"""
EPISODES = 40
SOLVED = {"base": 0, "sft": 10, "operator": 30, "instructor": 30, "student": 28, "sft_continued": 15}  # of 40, by subject


class HandWritten:
    """Writes what each job would leave, in place of torchrun."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.behaviour: dict[str, str] = {}  # by job id
        self.at_work, self.most_at_work, self.lock = set[str](), 0, threading.Lock()

    def start(self, group: Group) -> "Ended":
        plan = read_plan(group.plan_folder)
        with self.lock:
            assert group.run_dir.name not in self.at_work, "two launches in one folder"
            self.at_work.add(group.run_dir.name)
            self.most_at_work = max(self.most_at_work, len(self.at_work))
        for job in group.jobs:
            folder = group.run_dir / "jobs" / job.folder
            self.ran.append(f"{group.run_dir.name}/{job.folder}")
            what = self.behaviour.get(job.id)
            if what == "fail":
                Outcome(job=job.id, rank=0, exit_code=6, message="it broke").write(folder)
                return Ended(lambda: 1, self, group)
            if what == "wait":
                return Ended(lambda job=job, folder=folder: stopped(job, folder, group), self, group)
            finish(plan.seed, job, folder)
        return Ended(lambda: 0, self, group)


class Ended:
    """A group whose status a function tells."""

    def __init__(self, status: Callable[[], int | None], launcher: HandWritten, group: Group) -> None:
        self.status, self.launcher, self.group = status, launcher, group

    def poll(self) -> int | None:
        code = self.status()
        if code is not None:
            with self.launcher.lock:
                self.launcher.at_work.discard(self.group.run_dir.name)
        return code

    def kill(self) -> None:
        raise AssertionError("nobody asked twice")


def stopped(job: Job, folder: Path, group: Group) -> int | None:
    if not (group.run_dir / STOP_REQUEST).exists():
        return None
    Outcome(job=job.id, rank=0, exit_code=7, message="stopped after step 3").write(folder)
    return 1


def finish(seed: int, job: Job, folder: Path) -> None:
    result: dict[str, Any] = {"job": job.id}
    if job.kind == "evaluate":
        solved = SOLVED[job.settings["subject"]] + (seed == 12)
        scores = {
            "episodes": EPISODES,
            "score": solved / EPISODES,
            "ci95": [0.0, 1.0],
            "outcomes": [1.0] * solved + [0.0] * (EPISODES - solved),
            "truncated": 0,
            "tasks_digest": f"{seed}",
        }
        result = {"subject": job.settings["subject"], "domains": dict.fromkeys(job.settings["domains"], scores)}
    write_json(folder / "result.json", result)
    if job.kind in ("sft", "grpo", "distill"):
        lines = [{"step": step, "steps": 2, "loss": 1.0, "tokens": 50} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_json(folder / DONE, {"job": job.id, "recipe_digest": job.recipe_digest, "files": describe_files(folder, ["result.json"])})


@pytest.fixture
def parts(tmp_path: Path) -> SweepParts:
    return written(tmp_path, SWEEP)


def written(folder: Path, sweep: str) -> SweepParts:
    (folder / "smoke.yaml").write_text(SMOKE.read_text().replace("runs: ../runs", "runs: runs"))
    (folder / "sweep.yaml").write_text(sweep)
    compiled = compile_sweep(folder / "sweep.yaml")
    runs = []
    for one in compiled.variants:
        run_dir = run_dir_of(compiled.folder, one.at, one.seed)
        place = plan_folder_of(run_dir, one.row)
        publish(one.done, place)
        subject = compiled.sweep.rows[one.row].subject
        runs.append(SweepRun(at=one.at, row=one.row, seed=one.seed, subject=subject, plan_folder=place, run_dir=run_dir))
    axis = compiled.sweep.along.title if compiled.sweep.along else None
    titles = {name: row.title or name for name, row in compiled.sweep.rows.items()}
    return SweepParts(name="small", folder=compiled.folder, axis=axis, titles=titles, runs=tuple(runs))


@pytest.fixture
def said() -> list[str]:
    return []


def go(parts: SweepParts, launcher: HandWritten, said: list[str], at_once: int = 1) -> int:
    return run_sweep(parts, at_once=at_once, again="polymath sweep s.yaml", say=said.append, launcher=launcher)


def figures_of(parts: SweepParts) -> dict[str, Any]:
    return json.loads((parts.folder / "sweep.json").read_text())


def test_what_rows_of_a_seed_share_runs_once_and_the_figures_are_of_the_first_row_s_teachers(
    parts: SweepParts, said: list[str]
) -> None:
    launcher = HandWritten()
    assert go(parts, launcher, said) == ExitCode.OK
    assert len(launcher.ran) == len(set(launcher.ran)), "a job ran twice"
    assert sum("/sft-" in job for job in launcher.ran) == 2
    assert sum("/distill-" in job for job in launcher.ran) == 3

    found = figures_of(parts)
    assert found["complete"] and found["reference"] == "routed"
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == ["routed", "k2", "continued"]
    assert rows["routed"]["recovered_gain"]["mean"] == pytest.approx((28 - 10) / (30 - 10))
    assert rows["continued"]["recovered_gain"]["mean"] == pytest.approx((15 - 10) / (30 - 10))
    low, high = rows["routed"]["recovered_gain"]["interval"]
    assert low < 0.9 < high
    assert rows["k2"]["seeds"] == [11] and rows["continued"]["seeds"] == [11, 12]
    assert rows["routed"]["trained_tokens"] == 100
    assert rows["routed"]["mean_score"] == pytest.approx(28.5 / 40)
    headline = found["recovered_gain"]
    assert headline == {**rows["routed"]["recovered_gain"], "seeds": [11, 12]} and headline["min_domain"] == pytest.approx(0.9)
    runs = {(run["row"], run["seed"]): run for run in found["runs"]}
    assert runs["routed", 12]["domains"]["tools"]["teacher"] == pytest.approx(31 / 40)
    assert len(runs) == 5 and all(run["measured"] for run in runs.values())


def test_the_figures_of_the_first_row_at_one_seed_are_those_of_its_own_report(parts: SweepParts, said: list[str]) -> None:
    only = [run for run in parts.runs if (run.row, run.seed) == ("routed", 11)]
    alone = SweepParts(name="small", folder=parts.folder, axis=None, titles={"routed": "Routed"}, runs=tuple(only))
    assert go(alone, HandWritten(), said) == 0
    scoreboard = json.loads((only[0].run_dir / "scoreboard.json").read_text())
    gain = figures_of(alone)["recovered_gain"]
    assert (gain["mean"], gain["interval"]) == (scoreboard["mean_recovered_gain"], scoreboard["mean_recovered_gain_ci95"])


def test_the_table_and_the_plot_show_every_row(parts: SweepParts, said: list[str]) -> None:
    go(parts, HandWritten(), said)
    table = (parts.folder / "sweep.md").read_text()
    assert "| Routed \\| k = 8 | 11, 12 | 71.2 | 0.900 [" in table and "| k2 | 11 |" in table
    plot = ElementTree.parse(parts.folder / "sweep.svg")
    texts = [node.text for node in plot.iter() if node.tag.endswith("}text")]
    assert {"Routed | k = 8", "k2", "continued", "teachers", "SFT"} <= set(texts)


LONGER = """polymath_sweep: 1
name: small
along: {title: prompts, points: [{at: 4, base: smoke.yaml}, {at: 8, base: longer.yaml}]}
seeds: [11, 12]
rows: {routed: {}, k2: {change: {student: {distill: {loss: {support: {top_k: 2}}}}}}}
"""


def test_along_an_axis_every_point_has_an_sft_and_teachers_of_its_own_and_a_place_in_table_and_plot(
    tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "longer.yaml").write_text("polymath: 1\nextends: smoke.yaml\nstudent: {sft: {steps: 21}}\n")
    parts = written(tmp_path, LONGER)
    launcher = HandWritten()
    assert go(parts, launcher, said) == ExitCode.OK
    assert sum("/sft-" in job for job in launcher.ran) == 4 and sum("/distill-" in job for job in launcher.ran) == 8
    found = figures_of(parts)
    assert found["axis"] == "prompts"
    assert [(row["at"], row["row"]) for row in found["rows"]] == [(4, "routed"), (4, "k2"), (8, "routed"), (8, "k2")]
    assert all(run["measured"] for run in found["runs"]) and len(found["runs"]) == 8
    table = (parts.folder / "sweep.md").read_text()
    assert "| prompts | row |" in table and "| 4 | k2 | 11, 12 |" in table and "| 8 | k2 | 11, 12 |" in table
    plot = ElementTree.parse(parts.folder / "sweep.svg")
    texts = [node.text for node in plot.iter() if node.tag.endswith("}text")]
    assert {"recovered gain by prompts", "mean over domains", "tools", "routed", "k2", "4", "8"} <= set(texts)
    lines = [node for node in plot.iter() if node.tag.endswith("}path") and "line" in node.attrib["class"].split()]
    assert len(lines) == 2 * 3  # rows, by the mean and the two domains


def test_seeds_run_side_by_side_and_rows_of_a_seed_never(parts: SweepParts, said: list[str]) -> None:
    launcher = HandWritten()
    both = threading.Barrier(2, timeout=20)
    first = set[str]()

    def start(group: Group) -> Ended:
        if group.run_dir.name not in first:
            first.add(group.run_dir.name)
            both.wait()  # breaks unless the other seed starts as well
        return HandWritten.start(launcher, group)

    launcher.start = start  # type: ignore[method-assign]
    assert go(parts, launcher, said, at_once=2) == ExitCode.OK
    assert figures_of(parts)["complete"]


def test_launches_side_by_side_on_gpus_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one_gpu.yaml").write_text(SMOKE.with_name("one_gpu.yaml").read_text())
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("polymath_sweep: 1\nname: small\nbase: one_gpu.yaml\nseeds: [1, 2]\nrows:\n  routed: {title: Routed}\n")
    assert main(["sweep", str(sweep), "--jobs", "2"]) == ExitCode.USAGE
    assert "--jobs 2: launches side by side would take the same GPUs" in capsys.readouterr().err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["one_gpu.yaml", "sweep.yaml"]


def test_a_stopped_sweep_says_how_to_go_on_and_goes_on(parts: SweepParts, said: list[str]) -> None:
    launcher = HandWritten()
    launcher.behaviour = {"distill": "wait"}
    interrupt = threading.Thread(target=interrupt_when, args=(lambda: any("/teachers." in one for one in list(launcher.ran)),))
    interrupt.start()
    assert go(parts, launcher, said) == ExitCode.INTERRUPTED
    interrupt.join()
    assert said[-1] == "stopped with 5 of 5 runs to do\nto go on: polymath sweep s.yaml"
    found = figures_of(parts)
    assert not found["complete"] and found["recovered_gain"]["mean"] is None
    assert "Not complete: 0 of 5" in (parts.folder / "sweep.md").read_text()

    before = list(launcher.ran)
    launcher.behaviour = {}
    assert go(parts, launcher, said) == ExitCode.OK
    again = launcher.ran[len(before) :]
    assert not any("seed-11/sft-" in job for job in again) and figures_of(parts)["complete"]

    launcher.ran.clear()
    assert go(parts, launcher, said) == ExitCode.OK
    assert launcher.ran == [] and "5 of 5 runs finished earlier" in said


def interrupt_when(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_fails_does_not_stop_the_others(parts: SweepParts, said: list[str]) -> None:
    launcher = HandWritten()
    launcher.behaviour = {"sft_continued": "fail"}
    with pytest.raises(UserError, match="5 of 5 runs failed") as caught:
        go(parts, launcher, said)
    assert caught.value.exit_code == ExitCode.FAILED and "it broke" in caught.value.message
    assert sum("/distill-" in job for job in launcher.ran) == 3


def test_rows_that_tried_other_tasks_are_not_compared(parts: SweepParts, said: list[str]) -> None:
    go(parts, HandWritten(), said)
    run = next(one for one in parts.runs if one.row == "k2")
    job = run.evaluation("student")
    folder = run.folder_of(job)
    result = json.loads((folder / "result.json").read_text())
    result["domains"]["tools"]["tasks_digest"] = "others"
    write_json(folder / "result.json", result)
    done = json.loads((folder / DONE).read_text())
    write_json(folder / DONE, {**done, "files": describe_files(folder, ["result.json"])})
    with pytest.raises(UserError, match="different tasks of `tools`"):
        Figures(parts).gather()


def test_no_two_points_of_an_axis_share_a_folder() -> None:
    points = (2, 0.1, 1 / 3, 131_072, 1_048_576, 1_048_577, 2_097_153.5, 1e-9)
    folders = {run_dir_of(Path("sweep"), at, 7) for at in points}
    assert len(folders) == len(points)
    assert Path("sweep/at-2/seed-7") in folders and Path("sweep/at-1048577/seed-7") in folders
