"""A run of three stages on vLLM engines whose acting engine is killed in the middle of a rollout, and which goes on to its end.

What `make test-vllm` can afford: the smoke recipe with fewer steps and without evaluation (`test_runs.py` has all of it).
"""

from contextlib import ExitStack
from pathlib import Path

import pytest
from conformance.engines import lacks, settings_of
from end_to_end.polymath import compile_recipe
from polymath.runtime.engines.vllm import start_worker
from polymath.specs.diagnostics import ExitCode, UserError

from .runs import RECIPE, engines_of, is_alive, launch_with_a_death, metrics_of, require_whole

pytestmark = [pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or ""), pytest.mark.multi_rank]

STEPS = 4
SHORT = (
    "student.sft.steps=10",
    "teachers.operator.phases[0].steps=5",
    "teachers.instructor.phases[0].steps=1",
    f"student.distill.steps={STEPS}",
    "evaluate=null",
    "placement.evaluate=null",
    "export=[]",
)


def test_three_stages_survive_the_death_of_the_engine_that_acts(tmp_path: Path) -> None:
    plan, run = compile_recipe(RECIPE, tmp_path, *SHORT), tmp_path / "run"
    launch_with_a_death(plan, run, tmp_path, index=2, version=2)
    require_whole(plan, run, versions=list(range(STEPS)))
    for name in ("logprob_gap_max.tools", "logprob_gap_max.instructions"):  # of the tokens that the engine wrote
        assert max(line.get(name, 0.0) for line in metrics_of(plan, run)) < 1e-3
    for job in ("teachers.instructor.1", "distill"):
        engines = engines_of(plan, run, job)
        assert engines and not any(is_alive(engine["pid"]) for engine in engines)


def test_an_engine_that_cannot_load_its_model_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with ExitStack() as cleanup, pytest.raises(UserError, match=r"ended with status 1 before it was ready(.|\n)*nothing") as caught:
        start_worker(settings_of(tmp_path), tmp_path / "log", cleanup).wait()
    assert caught.value.exit_code == ExitCode.UNFIT
