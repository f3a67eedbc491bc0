"""The plan: deterministic, verified, and digested by what matters."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.canonical import digest, readable_json
from polymath.compiler.driver import compile_spec, lock_spec
from polymath.compiler.plan import Input, Plan, Sources, compiler_version, read_plan, read_sources
from polymath.compiler.store import plan_files
from polymath.specs import model
from polymath.specs.build import from_json
from polymath.specs.diagnostics import SpecInvalid, UserError
from shipped import RECIPES

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def compiled(folder: Path, *overrides: str, text: str | None = None) -> Plan:
    spec = folder / "my.yaml"
    spec.write_text(text or TEMPLATE.read_text())
    return compile_spec(spec, folder / "plan", overrides)


def with_file(text: str) -> str:
    return text.replace("{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}   #", "{path: data.jsonl}   #", 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_job_graph_of_the_template(tmp_path: Path) -> None:
    plan = compiled(tmp_path)
    needs = {job.id: set(job.needs) for job in plan.jobs}
    assert needs == {
        "import": set(),
        "synthesize": set(),
        "contamination": {"synthesize"},
        "sft": {"import", "synthesize"},
        "teachers.operator.1": {"sft"},
        "teachers.searcher.1": {"sft", "synthesize"},
        "distill": {"sft", "teachers.operator.1", "teachers.searcher.1"},
        "evaluate.base": {"import"},
        "evaluate.sft": {"sft"},
        "evaluate.operator": {"teachers.operator.1"},
        "evaluate.searcher": {"teachers.searcher.1"},
        "evaluate.student": {"distill"},
        "export": {"distill"},
    }
    done: set[str] = set()
    for job in plan.jobs:
        assert set(job.needs) <= done, "jobs stand in an order in which they can run"
        done.add(job.id)
    assert plan.processes == (tuple(job.id for job in plan.jobs),)
    assert plan.job("distill").settings["routing"] == {"search": "searcher", "tools": "operator"}
    assert list(plan.job("evaluate.searcher").settings["domains"]) == ["search"]


def test_settings_turn_back_into_the_spec_blocks(tmp_path: Path) -> None:
    compiled(tmp_path)
    for job in read_plan(tmp_path / "plan").jobs:
        from_json(model.Model, job.settings["model"])
        for domain in job.settings.get("domains", {}).values():
            from_json(model.Domain, domain)
        if "stage" in job.settings:
            from_json(getattr(model, job.settings["stage_type"]), job.settings["stage"])


def test_phases_of_a_teacher_follow_each_other_and_teachers_their_parents(tmp_path: Path) -> None:
    text = TEMPLATE.read_text().replace("  operator:\n    from: student.sft", "  operator:\n    from: searcher")
    phase = "{method: sft, domains: [search], steps: 1, batch_sequences: 2, sequence_tokens: 64, learning_rate: 1e-3}"
    text = text.replace("    phases:\n      - {method: sft", f"    phases:\n      - {phase}\n      - {{method: sft", 1)
    plan = compiled(tmp_path, text=text)
    assert plan.job("teachers.searcher.2").inputs["model"] == Input(job="teachers.searcher.1", output="model")
    assert plan.job("teachers.operator.1").inputs["model"] == Input(job="teachers.searcher.2", output="model")
    assert plan.job("distill").inputs["teacher.searcher"] == Input(job="teachers.searcher.2", output="model")


def test_the_control_waits_for_the_tokens_of_distillation(tmp_path: Path) -> None:
    job = compiled(tmp_path, "evaluate.continued_sft=true").job("sft_continued")
    assert job.inputs["budget"] == Input(job="distill", output="result")
    assert job.settings["stage"]["learning_rate"] == 1e-3
    assert "training.steps" not in {one.path for one in job.titan}


def test_torchtitan_is_told_what_the_spec_says(tmp_path: Path) -> None:
    told = {one.path: one.value for one in compiled(tmp_path).job("sft").titan}
    assert told["training.seq_len"] == 128 and told["training.global_batch_size"] == 32
    assert told["training.local_batch_size"] == 16
    assert told["parallelism.expert_parallel_degree"] == 2
    assert told["lr_scheduler.warmup_steps"] == 10
    assert told["optimizer.param_groups.0.optimizer_kwargs.lr"] == 4e-3


def test_the_same_spec_gives_the_same_bytes_everywhere(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(TEMPLATE.read_text())
    seen: list[dict[str, bytes]] = []
    for number, (seed, locale, folder) in enumerate(
        [("0", "C", tmp_path), ("1", "de_DE.UTF-8", Path("/")), ("77", "C.UTF-8", tmp_path)]
    ):
        env = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": f"UTC{number}", "USER": f"u{number}"}
        target = tmp_path / f"plan{number}"
        command = [sys.executable, "-m", "polymath.runtime.cli", "compile", str(tmp_path / "my.yaml"), "-o", str(target)]
        subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True)
        seen.append(contents(target))
    assert seen[0] == seen[1] == seen[2]


def test_the_plan_names_no_place_on_this_machine(tmp_path: Path) -> None:
    compiled(tmp_path)
    for name, content in contents(tmp_path / "plan").items():
        assert name == "sources.json" or str(tmp_path).encode() not in content


def test_spelling_order_and_comments_do_not_change_the_recipe(tmp_path: Path) -> None:
    before = compiled(tmp_path)
    text = TEMPLATE.read_text().replace("4e-3", "0.004").replace("# stage 1: all domains", "")
    head, domains = text.split("domains:\n", 1)
    search, rest = domains.split("  tools:\n", 1)
    tools, tail = rest.split("\nstudent:", 1)
    assert compiled(tmp_path, text=f"{head}domains:\n  tools:\n{tools}\n{search}\nstudent:{tail}") == before


@pytest.mark.parametrize(
    ("override", "recipes", "exact"),
    [
        ("name=other", set(), False),
        ("evaluate.models=[student]", set(), False),
        ("checkpoint.every_steps=7", set(), True),
        ("placement.sft.trainer.micro_batch=8", set(), True),
        ("student.sft.learning_rate=1e-4", {"sft", "evaluate.sft", "distill"}, True),
        ("student.distill.steps=51", {"distill", "evaluate.student", "export"}, True),
        ("evaluate.temperature=1", {"evaluate.sft", "evaluate.student"}, True),
        ("model.shape.hidden=128", {"import", "sft"}, True),
        ("precision.compute=bfloat16", {"sft", "distill"}, True),
        ("seed=8", {"import", "sft", "distill"}, True),
    ],
)
def test_a_field_changes_the_digests_that_it_should(tmp_path: Path, override: str, recipes: set[str], exact: bool) -> None:
    before = {job.id: job for job in compiled(tmp_path).jobs}
    after = {job.id: job for job in compiled(tmp_path, override).jobs}
    changed = {name for name, job in after.items() if job.recipe_digest != before[name].recipe_digest}
    assert recipes <= changed
    assert bool(recipes) == bool(changed)
    assert any(job.exact_digest != before[name].exact_digest for name, job in after.items()) == exact
    if override.startswith("student.distill"):
        assert changed == recipes


def test_data_is_known_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    text = with_file(TEMPLATE.read_text())
    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "my.yaml").write_text(text)
    lock_spec(tmp_path / "my.yaml")
    before = compiled(tmp_path, text=text).job("sft")
    assert before.inputs["source.search.0"].digest is not None
    assert dict(read_sources(tmp_path / "plan").urls) == {"source.search.0": "data.jsonl"}

    shutil.copy(tmp_path / "data.jsonl", tmp_path / "copy.jsonl")
    moved = text.replace("data.jsonl", "copy.jsonl")
    (tmp_path / "my.yaml").write_text(moved)
    lock_spec(tmp_path / "my.yaml")
    after = compiled(tmp_path, text=moved).job("sft")
    assert (after.recipe_digest, after.exact_digest) == (before.recipe_digest, before.exact_digest)

    (tmp_path / "copy.jsonl").write_text((json.dumps(ROW) + "\n") * 2)
    with pytest.raises(UserError, match="changed since") as caught:
        compiled(tmp_path, text=moved)
    assert caught.value.exit_code == 4
    lock_spec(tmp_path / "my.yaml")
    assert compiled(tmp_path, text=moved).job("sft").recipe_digest != before.recipe_digest


def test_without_a_lock_files_are_hashed_and_urls_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(ROW) + "\n")
    text = with_file(TEMPLATE.read_text())
    digest_of_file = compiled(tmp_path, text=text).job("sft").inputs["source.search.0"].digest
    assert digest_of_file == hashlib.sha256((tmp_path / "data.jsonl").read_bytes()).hexdigest()
    text = text.replace("data.jsonl", "s3://bucket/data.jsonl")
    assert compiled(tmp_path, text=text).job("sft").inputs["source.search.0"].digest is None


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ('{"messages": [', "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": "a"}', "`messages`"),
        ("\xff", "row 2"),
        ("[" * 100_000, "too deep"),
        ('{"messages": [], "reward": NaN}', "NaN is no number"),
        ('{"messages": [], "reward": true}', "`reward` is true, not a number"),
        ('{"messages": [], "reward": 1' + "0" * 400 + "}", "`reward` is 1000"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path: Path, row: str, word: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + row.encode("latin-1") + b"\n")
    (tmp_path / "my.yaml").write_text(with_file(TEMPLATE.read_text()))
    with pytest.raises(SpecInvalid) as caught:
        lock_spec(tmp_path / "my.yaml")
    (found,) = caught.value.diagnostics
    assert (found.code, found.span.line) == ("E0314", 18)
    assert "data.jsonl, row 2" in found.detail and word in found.detail
    assert not (tmp_path / "my.lock.json").exists()


def test_a_lock_counts_rows(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text((json.dumps(ROW) + "\n") * 3)
    (tmp_path / "my.yaml").write_text(with_file(TEMPLATE.read_text()))
    lock, path = lock_spec(tmp_path / "my.yaml")
    assert lock.sources["source.search.0"].rows == 3
    assert json.loads(path.read_text())["sources"]["source.search.0"]["bytes"] == (tmp_path / "data.jsonl").stat().st_size


@pytest.mark.parametrize("name", ["plan.json", "jobs/sft.json", "graph.mmd"])
def test_an_edited_plan_is_refused_by_name(tmp_path: Path, name: str) -> None:
    compiled(tmp_path)
    path = tmp_path / "plan" / name
    text = path.read_text()
    path.write_text(text.replace("sft", "tfs", 1) if name == "graph.mmd" else text.replace('"seed": ', '"seed": 1', 1))
    with pytest.raises(UserError, match=name.replace("/", ".")) as caught:
        read_plan(tmp_path / "plan")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "edit", [{"jobs": 3}, {"jobs": [{}]}, {"files": None}, {"files": {"jobs": "0"}}, {"cluster": []}, {"more": 1}]
)
def test_a_plan_that_was_edited_and_signed_anew_is_refused(tmp_path: Path, edit: dict[str, Any]) -> None:
    compiled(tmp_path)
    path = tmp_path / "plan" / "plan.json"
    head = {name: value for name, value in {**json.loads(path.read_text()), **edit}.items() if name != "digest"}
    path.write_text(readable_json({**head, "digest": digest(head)}))
    with pytest.raises(UserError, match="is not what the compiler wrote") as caught:
        read_plan(tmp_path / "plan")
    assert caught.value.exit_code == 4


def test_a_plan_without_one_of_its_files_is_refused(tmp_path: Path) -> None:
    compiled(tmp_path)
    (tmp_path / "plan" / "jobs" / "sft.json").unlink()
    with pytest.raises(UserError, match=r"sft\.json") as caught:
        read_plan(tmp_path / "plan")
    assert caught.value.exit_code == 4


def test_a_plan_of_another_version_is_refused_with_the_command(tmp_path: Path) -> None:
    compiled(tmp_path)
    path = tmp_path / "plan" / "plan.json"
    head = json.loads(path.read_text())
    del head["digest"]
    head["compiler"] = "0.0.9"
    path.write_text(readable_json({**head, "digest": digest(head)}))
    with pytest.raises(UserError, match=r"0\.0\.9") as caught:
        read_plan(tmp_path / "plan")
    assert caught.value.exit_code == 4
    assert compiler_version() != "0.0.9"
    assert "polymath compile" in (caught.value.fix or "")


def test_a_folder_that_is_no_plan_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a plan") as caught:
        compiled(tmp_path)
    assert caught.value.exit_code == 64
    assert contents(tmp_path / "plan") == {"thesis.tex": b"years of work"}


def test_what_a_user_put_beside_a_plan_is_never_lost(tmp_path: Path) -> None:
    compiled(tmp_path)
    (tmp_path / "plan" / "notes.md").write_text("why seed 7")
    before = contents(tmp_path / "plan")
    with pytest.raises(UserError, match=r"holds notes\.md beside a plan") as caught:
        compiled(tmp_path, "seed=8")
    assert caught.value.exit_code == 64
    assert contents(tmp_path / "plan") == before


def test_runs_lie_where_the_spec_says_and_nowhere_else() -> None:
    def folder(runs: str) -> Path:
        return Sources(spec_folder="/spec", runs=runs, urls={}).runs_folder

    assert folder("../runs") == Path("/runs") and folder("/data/runs") == Path("/data/runs")
    assert folder("~/runs") == Path("~/runs").expanduser() and folder("file:///data/runs") == Path("/data/runs")
    with pytest.raises(UserError, match="no folder of this machine") as caught:  # `sources.json` may be edited
        folder("s3://bucket/runs")
    assert caught.value.exit_code == 4


def test_an_older_plan_is_replaced_whole(tmp_path: Path) -> None:
    compiled(tmp_path, "evaluate.continued_sft=true")
    plan = compiled(tmp_path)
    assert not (tmp_path / "plan" / "jobs" / "sft_continued.json").exists()
    assert read_plan(tmp_path / "plan") == plan
    assert contents(tmp_path / "plan").keys() == plan_files(plan, read_sources(tmp_path / "plan")).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.yaml", "plan"], "no staging folder is left"


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.stem for recipe in RECIPES])
def test_every_shipped_recipe_compiles(recipe: Path, tmp_path: Path) -> None:
    for name in ("airline.jsonl", "gsm8k.jsonl"):
        (tmp_path / name).write_text(json.dumps({**ROW, "question": "q", "answer": "a"}) + "\n")
    try:
        compile_spec(recipe, tmp_path / "plan")
    except SpecInvalid as error:
        assert {one.code for one in error.diagnostics} == {"E0312"}, "only data that is not shipped may be missing"


def test_a_merged_student_reads_sft_and_each_routed_teacher_once_and_is_what_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "extends: smoke.yaml\nstudent: {distill: null, merge: {method: average}}\nevaluate: {continued_sft: false}\n"
        "teachers: {instructor: null}\nrouting: [{domains: [tools, instructions], teacher: operator}]\n"
    )
    (tmp_path / "smoke.yaml").write_text((RECIPES[0].parent / "smoke.yaml").read_text())
    plan = compile_spec(tmp_path / "my.yaml", tmp_path / "plan")
    merge = plan.job("merge")
    assert {name: one.job for name, one in merge.inputs.items()} == {"model": "sft", "teacher.operator": "teachers.operator.1"}
    assert merge.settings["routing"] == {"tools": "operator", "instructions": "operator"}
    assert plan.job("evaluate.student").inputs["model"].job == "merge" and plan.job("export").needs == ("merge",)
    assert "distill" not in {job.id for job in plan.jobs} and merge.roles["trainer"].mesh is None
    (tmp_path / "scaled.yaml").write_text("extends: my.yaml\nstudent: {merge: {method: task_arithmetic, scale: 0.5}}\n")
    scaled = compile_spec(tmp_path / "scaled.yaml", tmp_path / "scaled").job("merge")
    (tmp_path / "again.yaml").write_text("extends: scaled.yaml\nstudent: {merge: {scale: 0.4}}\n")
    again = compile_spec(tmp_path / "again.yaml", tmp_path / "again").job("merge")
    assert len({merge.recipe_digest, scaled.recipe_digest, again.recipe_digest}) == 3


def test_a_merged_student_needs_a_teacher_for_every_domain(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "extends: smoke.yaml\nstudent: {distill: null, merge: {method: average}}\nevaluate: {continued_sft: false}\n"
        "teachers: {instructor: null}\nrouting: [{domains: [tools], teacher: operator}]\n"
    )
    (tmp_path / "smoke.yaml").write_text((RECIPES[0].parent / "smoke.yaml").read_text())
    with pytest.raises(SpecInvalid, match=r"`student\.merge` needs a teacher for `instructions`"):
        compile_spec(tmp_path / "my.yaml", tmp_path / "plan")


def test_task_arithmetic_needs_a_scale(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "extends: smoke.yaml\nstudent: {distill: null, merge: {method: task_arithmetic}}\nevaluate: {continued_sft: false}\n"
    )
    (tmp_path / "smoke.yaml").write_text((RECIPES[0].parent / "smoke.yaml").read_text())
    with pytest.raises(SpecInvalid, match="add `scale`"):
        compile_spec(tmp_path / "my.yaml", tmp_path / "plan")
