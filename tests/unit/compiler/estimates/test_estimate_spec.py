"""`polymath estimate`: what it says of a spec, and how a run's measured steps change it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.estimates.quantity import Quantity
from polymath.compiler.estimates.show import brief, full
from polymath.compiler.estimates.spec import Estimate, estimate_spec
from polymath.runtime.cli import main
from polymath.specs.diagnostics import UserError

RECIPES = Path(__file__).parents[4] / "recipes"
SECONDS = 2.5


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the smoke recipe whose every training step took so long."""
    plan = compile_spec(RECIPES / "smoke.yaml", tmp_path / "run" / "plan")
    for job in plan.jobs:
        if job.kind in ("sft", "grpo", "distill"):
            folder = tmp_path / "run" / "jobs" / job.folder
            folder.mkdir(parents=True)
            lines = [{"step": step, "tokens": 100, "seconds": SECONDS if step > 1 else 60.0} for step in (1, 2, 3)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "sec')
    return tmp_path / "run"


def quantities(estimate: Estimate) -> Iterator[Quantity]:
    yield from estimate.parameters
    for job in estimate.jobs:
        yield from (*job.flops, *job.communication, *job.seconds)
        yield from (one for one in (job.tokens, job.steps, job.device_hours, job.largest_context) if one is not None)
        yield from job.memory.quantities if job.memory is not None else ()


def test_every_number_has_a_formula_and_stands_in_the_text_with_it() -> None:
    estimate = estimate_spec(RECIPES / "one_gpu.yaml")
    text = "\n".join(full(estimate))

    assert all(one.formula for one in quantities(estimate))
    assert all(one.explained() in text for one in quantities(estimate) if one.value)
    assert estimate.seconds is not None and estimate.device_hours is not None


def test_the_table_has_a_line_for_every_job_and_a_column_for_every_role() -> None:
    estimate = estimate_spec(RECIPES / "agents_a1_35b.yaml")
    lines = list(brief(estimate))

    assert all(role in lines[1] for role in ("trainer", "rollout", "scorer", "judge"))
    assert [line.split()[0] for line in lines[2 : 2 + len(estimate.jobs)]] == [job.id for job in estimate.jobs]


def test_time_is_not_made_up_for_a_machine_without_figures() -> None:
    estimate = estimate_spec(RECIPES / "smoke.yaml")

    assert estimate.seconds is None and estimate.device_hours is None
    assert any("--calibrate" in note for job in estimate.jobs for note in job.notes)


def test_a_measured_run_says_how_fast_its_own_spec_is(run: Path) -> None:
    estimate = estimate_spec(RECIPES / "smoke.yaml", calibrate=run)

    for job in estimate.jobs:
        if job.kind == "distill":
            assert job.seconds_per_step == pytest.approx(SECONDS)
    assert estimate.device_hours is not None
    assert all("measured in run" in text for text in estimate.rates.values())


def test_a_measured_run_scales_to_another_batch(run: Path) -> None:
    def seconds(*overrides: str) -> float:
        estimate = estimate_spec(RECIPES / "smoke.yaml", overrides, run)
        return next(job.seconds_per_step for job in estimate.jobs if job.id == "sft") or 0.0

    spec = estimate_spec(RECIPES / "smoke.yaml")
    rows = next(job.tokens.inputs["B"] for job in spec.jobs if job.id == "sft" and job.tokens is not None)
    assert seconds(f"student.sft.batch_sequences={int(2 * rows)}") == pytest.approx(2 * seconds())


def test_a_run_on_another_kind_of_device_calibrates_nothing(run: Path) -> None:
    with pytest.raises(UserError, match="ran on cpu, but the spec is for h100"):
        estimate_spec(RECIPES / "one_gpu.yaml", calibrate=run)


def test_a_run_without_steps_calibrates_nothing(tmp_path: Path) -> None:
    compile_spec(RECIPES / "smoke.yaml", tmp_path / "plan")
    with pytest.raises(UserError, match="holds no finished step"):
        estimate_spec(RECIPES / "smoke.yaml", calibrate=tmp_path)


def test_the_verb_prints_text_or_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(RECIPES / "smoke.yaml"), "--brief"]) == 0
    assert capsys.readouterr().out.startswith("smoke: ")
    assert main(["estimate", str(RECIPES / "smoke.yaml"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and {job["id"] for job in document["jobs"]} >= {"sft", "distill"}
