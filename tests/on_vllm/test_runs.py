"""Whole runs of three stages on vLLM engines: over our worker, over HTTP, and one step off-policy with an engine that is killed."""

import json
import shutil
from pathlib import Path

import pytest
from conformance.engines import lacks
from end_to_end.polymath import compile_recipe, job_folder
from polymath.compiler.plan import read_plan

from .runs import RECIPE, engines_of, is_alive, launch, launch_with_a_death, ledger_of, require_whole

pytestmark = [pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or ""), pytest.mark.multi_rank]

STEPS = 6
ON_POLICY = list(range(STEPS))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, run to its end."""
    folder = tmp_path_factory.mktemp("smoke")
    plan = compile_recipe(RECIPE, folder)
    launch(plan, folder / "run")
    return plan


@pytest.fixture
def run(plan: Path) -> Path:
    return plan.parent / "run"


def test_three_stages_run_on_vllm_and_leave_no_engine_behind(plan: Path, run: Path) -> None:
    require_whole(plan, run, ON_POLICY)
    for job in ("teachers.instructor.1", "distill", "evaluate.student"):
        engines = engines_of(plan, run, job)
        assert engines and not any(is_alive(engine["pid"]) for engine in engines)
    assert json.loads((run / "scoreboard.json").read_text())


def test_the_same_run_over_http_plays_the_same_first_batch(plan: Path, run: Path, tmp_path: Path) -> None:
    """How vLLM is reached changes no recipe: only what is deleted runs again."""
    first = ledger_of(plan, run).read(0)
    over_http = compile_recipe(
        RECIPE, tmp_path, "engines.transport=http", "placement.distill.scorer.devices=2", "cluster.per_node=5"
    )
    assert read_plan(over_http).recipe_digest == read_plan(plan).recipe_digest
    for job in ("distill", "evaluate.student", "export"):
        shutil.rmtree(job_folder(plan, run, job))
    launch(over_http, run)
    require_whole(plan, run, ON_POLICY)
    again = ledger_of(plan, run).read(0)
    assert [sample.ids for sample in again] == [sample.ids for sample in first]
    for one, other in zip(first, again, strict=True):
        assert one.support_logprobs_WK is not None and other.support_logprobs_WK is not None
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert (one.support_logprobs_WK - other.support_logprobs_WK).abs().max() < 1e-5


def test_a_run_one_step_off_policy_trains_each_batch_once_though_its_engine_is_killed_while_it_plays_ahead(
    plan: Path, run: Path, tmp_path: Path
) -> None:
    """Only distillation is another job: what comes before is taken from the run of the recipe."""
    settings = ("student.distill.max_policy_lag=1", "evaluate=null", "placement.evaluate=null", "export=[]")
    ahead = compile_recipe(RECIPE, tmp_path, *settings)
    assert job_folder(ahead, run, "sft") == job_folder(plan, run, "sft")
    launch_with_a_death(ahead, run, tmp_path, index=3, version=2)
    require_whole(ahead, run, [0, *range(STEPS - 1)])
