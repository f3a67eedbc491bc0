"""The shipped recipes say what the report says, and what they need."""

from pathlib import Path

import pytest
from polymath.compiler.driver import check_spec, compile_in_memory
from polymath.compiler.sweep import compile_sweep
from polymath.specs.build import to_json
from polymath.specs.model import GrpoPhase, Sft, Spec
from shipped import FOLDER, RECIPES, SWEEPS

REPORT = ("agents_a1_35b.yaml", "agents_a1_35b_256.yaml", "agents_a1_35b_1024.yaml")


def spec_of(name: str) -> Spec:
    spec = check_spec(FOLDER / name).spec
    assert spec is not None
    return spec


@pytest.mark.parametrize("path", [*RECIPES, *SWEEPS], ids=lambda path: path.name)
def test_a_recipe_opens_with_whom_it_is_for_what_it_needs_and_how_long_it_takes(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    for word in ("# For:", "# Needs:", "# Takes:", *(["$schema="] if path in RECIPES else [])):
        assert word in head, f"{path.name} does not say {word}"


def test_the_report_s_numbers_stand_in_its_recipe() -> None:
    spec = spec_of("agents_a1_35b.yaml")
    sft = spec.student.sft
    assert (sft.sequence_tokens, sft.learning_rate, sft.schedule, sft.warmup) == (131072, 1e-5, "cosine", 0.05)
    assert (sft.batch_sequences, sft.epochs, sft.weight_decay) == (16, 1, 0.1)
    assert (spec.model.family, spec.model.size) == ("qwen3_5_moe", "35b-a3b")
    assert len(spec.domains) == 6
    assert spec.domains["search"].limits is not None and spec.domains["search"].reward.outcome_by == "judge"
    assert (spec.domains["search"].limits.response_tokens, spec.domains["search"].limits.tool_calls) == (4096, 300)
    assert [name for name, one in spec.domains.items() if one.limits is not None and one.limits.finalize is not None] == ["search"]

    searched, search = spec.teachers["searcher"].phases
    assert isinstance(searched, Sft) and isinstance(search, GrpoPhase)
    assert (search.prompts, search.samples, search.clip, search.updates) == (32, 8, (0.2, 0.28), 1)
    assert (search.learning_rate, search.schedule, search.warmup) == (1e-6, "constant", 0.0)
    assert (search.reference_kl, search.entropy, search.sampling.temperature) == (1e-3, 1e-4, 1.0)
    assert to_json(search.keep_mixed) == {"attempts": 5, "tasks": 2000}

    tool = spec.teachers["operator"].phases[1]
    assert isinstance(tool, GrpoPhase) and tool.keep_mixed is not None
    assert (tool.advantage, tool.process_weight, tool.keep_mixed.tasks) == ("process", 0.5, 64)
    methods = {name: [phase.method for phase in teacher.phases] for name, teacher in spec.teachers.items()}
    assert methods["scientist"] == ["sft", "sft"] and methods["instructor"] == ["grpo", "grpo"]
    starts = {name: spec.teachers[name].start for name in ("searcher", "scientist", "operator", "instructor")}
    assert starts == {"searcher": "base", "scientist": "base", "operator": "base", "instructor": "student.sft"}
    assert spec.evaluate is not None and spec.evaluate.temperature == 0.7


@pytest.mark.parametrize(("name", "nodes"), list(zip(REPORT, (4, 32, 128), strict=True)))
def test_the_report_s_recipe_compiles_for_its_cluster_and_uses_it(name: str, nodes: int) -> None:
    plan = compile_in_memory(FOLDER / name).plan
    assert plan is not None and plan.cluster.nodes == nodes
    together = [[plan.processes[number] for number in wave] for wave in plan.waves]
    assert max(map(len, together)) == (1 if nodes == 4 else max(4, max(map(len, together)))), "independent teachers side by side"
    used = {role.devices for role in plan.job("distill").roles.values()}
    assert sum(role.devices for role in plan.job("distill").roles.values()) == nodes * 8, used


def test_batch_sixteen_with_tensor_two_leaves_sft_no_more_than_32_devices() -> None:
    mesh = compile_in_memory(FOLDER / REPORT[0]).meshes["sft"]
    assert (mesh.devices, mesh.tensor, mesh.data_parallel) == (32, 2, 16)
    with pytest.raises(Exception, match="E0505"):
        check_spec(FOLDER / REPORT[0], ("cluster.nodes=8", "placement.sft.trainer.devices=64"))


@pytest.mark.parametrize("name", REPORT[1:])
def test_the_larger_recipes_change_what_they_say_and_keep_the_report_s_method(name: str) -> None:
    base, larger = spec_of(REPORT[0]), spec_of(name)
    for same in ("model", "domains", "routing", "engines", "precision", "evaluate"):
        assert getattr(larger, same) == getattr(base, same), same
    ratio = larger.student.sft.batch_sequences / base.student.sft.batch_sequences
    assert larger.student.sft.learning_rate == pytest.approx(base.student.sft.learning_rate * ratio**0.5, rel=0.02)
    free = {"batch_sequences", "learning_rate", "steps", "prompts"}  # what the openings of the recipes announce
    for teacher, one in base.teachers.items():
        for before, after in zip(one.phases, larger.teachers[teacher].phases, strict=True):
            written, now = to_json(before), to_json(after)
            assert {key for key in written if written[key] != now[key]} <= free, teacher
            if isinstance(before, GrpoPhase) and isinstance(after, GrpoPhase):
                assert before.steps * before.prompts == pytest.approx(after.steps * after.prompts, rel=0.03), teacher


@pytest.mark.parametrize("card", ["a100", "h100", "h200", "b200"])
def test_one_card_of_80_gb_or_more_is_enough(card: str) -> None:
    done = compile_in_memory(FOLDER / "one_gpu.yaml", (f"cluster.accelerator={card}",))
    assert done.plan is not None
    assert {role.devices for job in done.plan.jobs for role in job.roles.values()} == {1}


def test_the_ablations_share_sft_and_teachers_with_the_headline() -> None:
    compiled = compile_sweep(FOLDER / "agents_a1_tiny_ablations.yaml")
    assert compiled.sweep.reference == "routed" and compiled.sweep.seeds_of("routed") == (7, 8, 9)
    own = {one.seed: {job.folder for job in one.plan.jobs} for one in compiled.variants if one.row == "routed"}
    for one in compiled.variants:
        new = {job.kind for job in one.plan.jobs if job.folder not in own[one.seed]}
        # Teachers from base learn from demonstrations that nobody else needs, so that row writes and learns its own.
        assert one.row == "teachers_from_base" or new <= {"distill", "merge", "evaluate", "export"}, one.row
        assert compiled.sweep.seeds_of(one.row) == ((7, 8, 9) if one.row in THREE_SEEDS else (7,))


THREE_SEEDS = ("routed", "sft_continued", "average", "task_arithmetic", "off_policy_sft")
