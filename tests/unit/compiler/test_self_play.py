"""Models that play roles of self-play: jobs of their own after those that train the models, and never in a circle."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from polymath.compiler.driver import check_spec, compile_in_memory
from polymath.compiler.plan import Plan
from polymath.specs.diagnostics import Diagnostic, SpecInvalid

SFT = {"steps": 2, "batch_sequences": 2, "sequence_tokens": 512, "learning_rate": 1e-3}
SHAPE = {
    **{"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "experts": 2, "experts_per_token": 1},
    **{"expert_hidden": 16, "context_tokens": 512},
}
SPEC: dict[str, Any] = {
    "polymath": 1,
    "name": "playing",
    "seed": 1,
    "model": {"family": "qwen3_moe", "checkpoint": "random", "tokenizer": "builtin:bytes", "shape": SHAPE},
    "domains": {
        "texts": {
            "world": "constraints",
            "trajectories": [{"synthesize": 4}, {"name": "solved", "synthesize": 4, "self_play": {"solver": "student.sft"}}],
            "prompts": {"train": 4, "heldout": 2},
            "limits": {"turns": 2, "response_tokens": 64, "context_tokens": 512},
        }
    },
    "student": {"sft": SFT, "merge": {"method": "average"}},
    "teachers": {"writer": {"from": "student.sft", "phases": [{"method": "sft", "trajectories": "solved", **SFT}]}},
    "routing": [{"domains": ["texts"], "teacher": "writer"}],
    "cluster": {"accelerator": "cpu", "per_node": 1},
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(change: Callable[[dict[str, Any]], None] = lambda spec: None) -> Path:
        spec = copy.deepcopy(SPEC)
        change(spec)
        path = tmp_path / "playing.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
        return path

    return make


def playing(**block: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        spec["domains"]["texts"]["trajectories"][1]["self_play"].update(block)

    return change


def plan(path: Path) -> Plan:
    found = compile_in_memory(path).plan
    assert found is not None
    return found


def mistakes(path: Path) -> list[Diagnostic]:
    with pytest.raises(SpecInvalid) as caught:
        check_spec(path)
    return list(caught.value.diagnostics)


def test_what_a_model_plays_is_a_job_after_its_training_and_before_who_trains_on_it(write: Write) -> None:
    jobs = plan(write()).jobs
    assert [job.id for job in jobs] == ["import", "synthesize", "sft", "synthesize.texts.solved", "teachers.writer.1", "merge"]
    by_id = {job.id: job for job in jobs}
    played = by_id["synthesize.texts.solved"]
    assert played.kind == "synthesize" and played.needs == ("sft",)
    assert [one["name"] for one in played.settings["domains"]["texts"]["trajectories"]] == ["solved"]
    assert "synthesize.texts.solved" in by_id["teachers.writer.1"].needs and by_id["sft"].needs == ("import", "synthesize")


def test_another_player_runs_what_it_plays_again_and_what_trains_on_it_but_not_what_it_plays_with(write: Write) -> None:
    before = {job.id: job.recipe_digest for job in plan(write()).jobs}
    after = {job.id: job.recipe_digest for job in plan(write(playing(solver="base", attempts=3))).jobs}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"synthesize.texts.solved", "teachers.writer.1", "merge"}
    budget = {"tokens": 10**6, "money": 3.5, "read_price": 1.0, "requests_per_minute": 60}
    richer = {job.id: job.recipe_digest for job in plan(write(playing(budget=budget))).jobs}
    assert richer == before, "a run that stopped for want of a budget goes on with a larger one"


def test_an_endpoint_is_a_role_of_its_job_and_its_place_is_outside_the_recipe(write: Write) -> None:
    service = {"url_env": "SOLVER_URL", "model": "large", "key_env": "SOLVER_KEY", "remote": True}
    first = plan(write(playing(solver=service))).job("synthesize.texts.solved")
    assert first.needs == () and first.roles["solver"].url_env == "SOLVER_URL" and first.roles["solver"].engine == "large"
    moved = plan(write(playing(solver={**service, "url_env": "OTHER_URL"}))).job("synthesize.texts.solved")
    other = plan(write(playing(solver={**service, "model": "larger"}))).job("synthesize.texts.solved")
    assert moved.recipe_digest == first.recipe_digest != other.recipe_digest


def test_models_that_play_on_an_engine_of_its_own_need_devices_for_it(write: Write) -> None:
    def served(spec: dict[str, Any]) -> None:
        spec["engines"] = {"rollout": "vllm"}
        spec["model"]["shape"]["head_dim"] = 32
        spec["cluster"]["per_node"] = 2

    def placed(spec: dict[str, Any]) -> None:
        served(spec)
        spec["placement"] = {"sft": {"trainer": {"devices": 1}}, "synthesize": {"rollout": {"devices": 2}}}

    (one,) = mistakes(write(served))
    assert one.code == "E0530" and "placement.synthesize" in str(one.fix)
    found = plan(write(placed))
    assert found.job("synthesize.texts.solved").roles["rollout"].devices == 2
    assert set(found.job("synthesize").roles) == {"trainer"}


def test_a_circle_is_shown_with_its_whole_way(write: Write) -> None:
    (one,) = mistakes(write(playing(solver="writer")))
    assert one.code == "E0410" and one.detail == "`writer` trains on `texts.solved`, whose solver is `writer`"

    def through_sft(spec: dict[str, Any]) -> None:
        spec["domains"]["texts"]["trajectories"][1]["self_play"] = {"verifier": "writer"}
        spec["student"]["sft"]["trajectories"] = "solved"
        spec["teachers"]["writer"]["phases"][0].pop("trajectories")

    (one,) = mistakes(write(through_sft))
    circle = "`student.sft` trains on `texts.solved`, whose verifier is `writer`, which starts from `student.sft`"
    assert one.code == "E0410" and one.detail == circle


def test_a_teacher_that_starts_from_the_base_may_play_for_the_student(write: Write) -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["domains"]["texts"]["trajectories"][1]["self_play"] = {"solver": "writer"}
        spec["student"]["sft"]["trajectories"] = "solved"
        spec["teachers"]["writer"] = {"from": "base", "phases": [{"method": "sft", **SFT}]}

    order = [job.id for job in plan(write(change)).jobs]
    assert order == ["import", "synthesize", "teachers.writer.1", "synthesize.texts.solved", "sft", "merge"]


def test_everything_that_is_wrong_with_self_play_is_said_at_once(write: Write) -> None:
    def change(spec: dict[str, Any]) -> None:
        texts = spec["domains"]["texts"]
        texts["trajectories"] = [
            {"synthesize": 4, "self_play": {"budget": {"tokens": 5}}},
            {"name": "solved", "synthesize": 4, "slip_rate": 0.5, "self_play": {"solver": "studnt.sft", "budget": {"money": 3.0}}},
            {"name": "solved", "synthesize": 4},
        ]
        texts["limits"] = {"turns": 2, "response_tokens": 64, "context_tokens": 1024}
        spec["domains"]["toys"] = {
            "world": "tools",
            "prompts": {"train": 4, "heldout": 2},
            "trajectories": [
                {"synthesize": 4, "self_play": {"solver": "base"}},
                {"name": "solved", "synthesize": 4},
            ],
        }
        spec["routing"][0]["domains"].append("toys")

    found = mistakes(write(change))
    assert sorted((one.code, one.span.line > 0) for one in found) == [
        ("E0209", True),
        ("E0303", True),
        ("E0303", True),
        ("E0303", True),
        ("E0303", True),
        ("E0310", True),
        ("E0409", True),
    ], [(one.code, one.detail) for one in found]
