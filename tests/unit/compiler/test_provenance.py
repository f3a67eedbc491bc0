"""Every value of a plan knows where it came from."""

from pathlib import Path

import pytest
from polymath.compiler.driver import compile_in_memory, compile_spec
from polymath.compiler.provenance import TITAN, find_origins, read_origins
from polymath.compiler.show import Shown, job_values, show
from polymath.runtime.cli import main
from polymath.specs.diagnostics import SpecInvalid, UserError
from shipped import RECIPES

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"


def shown(path: Path, wanted: str, *overrides: str) -> dict[str, Shown]:
    done = compile_in_memory(path, overrides)
    assert done.plan is not None
    return {one.path: one for one in show(done.plan, find_origins(done), wanted)}


def only(found: dict[str, Shown]) -> tuple[object, str]:
    (one,) = found.values()
    return one.value, one.origin


def test_a_written_value_names_its_line() -> None:
    lines = TEMPLATE.read_text().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "learning_rate: 4e-3" in line)
    assert only(shown(TEMPLATE, "student.sft.learning_rate")) == (4e-3, f"init.yaml:{number}")


def test_an_override_a_default_and_a_pass_are_told_apart() -> None:
    overrides = ("student.sft.steps=7", "student.distill.sampling={top_p: 0.5}")
    assert only(shown(TEMPLATE, "student.sft.steps", *overrides)) == (7, "--set student.sft.steps=7")
    sampling = shown(TEMPLATE, "student.distill.sampling", *overrides)
    assert sampling["student.distill.sampling.top_p"].origin.startswith("--set")
    assert sampling["student.distill.sampling.temperature"].origin == "default"
    assert only(shown(TEMPLATE, "student.sft.clip_norm")) == (1.0, "default")
    assert only(shown(TEMPLATE, "student.sft.domains")) == (["search", "tools"], "resolve: `all` domains (left open: default)")


def test_a_value_of_another_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "base.yaml").write_text(TEMPLATE.read_text())
    (tmp_path / "my.yaml").write_text("extends: bases/base.yaml\nseed: 3\n")
    assert only(shown(tmp_path / "my.yaml", "seed")) == (3, "my.yaml:2")
    assert only(shown(tmp_path / "my.yaml", "model.checkpoint"))[1] == "bases/base.yaml:10"


def test_a_job_says_which_path_of_the_spec_decided_it() -> None:
    assert only(shown(SMOKE, "jobs.sft_continued.settings.stage.learning_rate"))[1].startswith("student.distill.learning_rate, ")
    value, origin = only(shown(SMOKE, "jobs.distill.settings.routing.tools"))
    assert value == "operator" and origin.startswith("routing[0].teacher, smoke.yaml:")
    assert only(shown(SMOKE, "jobs.teachers.instructor.1.titan.training.seq_len"))[1].startswith("teachers.instructor.phases[0]")
    assert "lower" in only(shown(SMOKE, "jobs.sft.seed"))[1]


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_every_value_of_every_job_has_an_origin(recipe: Path) -> None:
    try:
        done = compile_in_memory(recipe)
    except SpecInvalid as error:
        assert {one.code for one in error.diagnostics} == {"E0312"}, "only data that is not shipped may be missing"
        return
    assert done.plan is not None
    origins = find_origins(done)
    for job in done.plan.jobs:
        assert job_values(job).keys() == origins.jobs[job.id].keys(), job.id
        assert {one.path for one in job.titan} <= TITAN.keys(), "say in compiler/provenance.py where it comes from"
        passes = {text.split(":")[0] for text in origins.jobs[job.id].values() if text not in origins.spec}
        assert passes <= {"lower", "place", "serve", "default"}


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("placement.sft.trainer.exprt", "placement.sft.trainer.expert"),
        ("student.sft.top_k", "student.distill.loss.support.top_k"),
        ("studnt", "student"),
    ],
)
def test_a_path_that_is_not_there_gets_a_suggestion(wanted: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        shown(TEMPLATE, wanted)
    assert caught.value.exit_code == 64 and f"`{hint}`" in (caught.value.fix or "")


def test_show_prints_and_writes_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", str(TEMPLATE), "--show", "teachers.operator.phases.0.samples"]) == 0
    assert capsys.readouterr().out == "teachers.operator.phases[0].samples = 8  # init.yaml:51\n"
    assert not list(tmp_path.iterdir())


def test_origins_stand_beside_the_plan_and_outside_its_digests(tmp_path: Path) -> None:
    spec = tmp_path / "my.yaml"
    spec.write_text(TEMPLATE.read_text())
    before = compile_spec(spec, tmp_path / "a")
    spec.write_text("# a comment moves every line\n" + TEMPLATE.read_text())
    assert compile_spec(spec, tmp_path / "b") == before
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()
    assert read_origins(tmp_path / "a").spec["seed"].origin == "my.yaml:6"
    assert read_origins(tmp_path / "b").spec["seed"].origin == "my.yaml:7"
