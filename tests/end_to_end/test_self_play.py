"""A run whose own SFT model plays: what it solves, and only that, is what a teacher trains on."""

import json
from pathlib import Path

import pytest

from .playing import compile_playing, require_solved
from .polymath import job_folder, polymath


@pytest.mark.multi_rank
def test_the_student_of_a_run_solves_and_a_teacher_trains_on_what_it_solved(tmp_path: Path) -> None:
    plan, run_dir = compile_playing(tmp_path), tmp_path / "run"
    done = polymath("launch", plan, "--run-dir", run_dir)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    require_solved(plan, run_dir)
    trained = json.loads((job_folder(plan, run_dir, "teachers.writer.1") / "result.json").read_text())
    assert [source["rows"] for source in trained["sources"]] == [3]
