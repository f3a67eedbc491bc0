"""Files that a world reads: found relative to the spec, locked by content, and their place outside the digests."""

import json
import re
from pathlib import Path

import pytest
import yaml
from polymath.compiler.driver import compile_in_memory, compile_spec, lock_spec
from polymath.compiler.plan import read_plan, read_sources
from polymath.runtime.jobs import JobContext
from polymath.runtime.worlds.registry import make_world, open_world
from polymath.specs.diagnostics import SpecInvalid, UserError
from polymath.specs.fields import LOCATION_FORMAT
from polymath.specs.locations import LOCATIONS
from polymath.specs.model import Domain
from polymath.specs.worlds import DATA_WORLDS, location_settings

SPEC = {
    "polymath": 1,
    "name": "sums",
    "seed": 1,
    "model": {
        "family": "qwen3_moe",
        "checkpoint": "random",
        "tokenizer": "builtin:bytes",
        "shape": {
            **{"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "experts": 2},
            **{"experts_per_token": 1, "expert_hidden": 16, "context_tokens": 512},
        },
    },
    "domains": {
        "sums": {
            "world": "gsm8k",
            "settings": {"data": "data/sums.jsonl"},
            "trajectories": [{"synthesize": 4}],
            "prompts": {"train": 4, "heldout": 2},
            "limits": {"turns": 1, "response_tokens": 64, "context_tokens": 512},
        }
    },
    "student": {"sft": {"epochs": 1, "batch_sequences": 1, "sequence_tokens": 512, "learning_rate": 1e-3}},
    "cluster": {"accelerator": "cpu", "nodes": 1, "per_node": 1},
    "placement": {"sft": {"trainer": {"devices": 1}}},
    "evaluate": {"episodes": 2},
}


def write_data(path: Path, rows: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}) for n in range(rows)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    write_data(tmp_path / "data/sums.jsonl")
    path = tmp_path / "sums.yaml"
    path.write_text(yaml.safe_dump(SPEC, sort_keys=False))
    return path


def test_every_file_of_a_built_in_world_is_known_as_a_place():
    fields = {field for world in DATA_WORLDS for field in location_settings(world)}
    assert {location[-1] for location in LOCATIONS if location[:3] == ("domains", "*", "settings")} == fields
    from polymath.specs.schema import recipe_schema

    gsm8k = recipe_schema()["$defs"]["Gsm8kSettings"]["properties"]["data"]
    assert gsm8k["format"] == LOCATION_FORMAT


def test_the_lock_holds_the_file_and_every_job_that_needs_it_names_it(spec: Path):
    lock, _ = lock_spec(spec)
    assert set(lock.sources) == {"world.sums.data"} and len(lock.sources["world.sums.data"].sha256) == 64
    plan = compile_in_memory(spec).plan
    assert plan is not None
    users = {job.id for job in plan.jobs if "world.sums.data" in job.inputs}
    assert users == {"synthesize", "contamination", "sft", "evaluate.base", "evaluate.sft"}
    assert plan.job("sft").inputs["world.sums.data"].digest == lock.sources["world.sums.data"].sha256


def test_a_job_is_the_same_wherever_the_file_lies_and_another_where_it_changed(spec: Path, tmp_path: Path):
    before = compile_in_memory(spec).plan
    write_data(tmp_path / "elsewhere/copy.jsonl")
    moved = compile_in_memory(spec, ["domains.sums.settings.data=elsewhere/copy.jsonl"]).plan
    write_data(tmp_path / "data/sums.jsonl", rows=21)
    changed = compile_in_memory(spec).plan
    assert before is not None and moved is not None and changed is not None
    assert before.recipe_digest == moved.recipe_digest != changed.recipe_digest


def test_a_missing_an_empty_and_a_misspelt_file_are_named_with_their_place(spec: Path, tmp_path: Path):
    for text, code in (("data/summs.jsonl", "E0312"), ("data/empty.jsonl", "E0313")):
        (tmp_path / "data/empty.jsonl").touch()
        with pytest.raises(SpecInvalid) as caught:
            compile_in_memory(spec, [f"domains.sums.settings.data={text}"])
        assert [one.code for one in caught.value.diagnostics] == [code]
    with pytest.raises(SpecInvalid, match=r"did you mean `data/sums\.jsonl`"):
        compile_in_memory(spec, ["domains.sums.settings.data=data/summs.jsonl"])


def test_a_password_in_the_url_is_refused_and_a_relative_path_means_the_same_in_a_spec_that_extends(spec: Path, tmp_path: Path):
    with pytest.raises(SpecInvalid, match="E0322"):
        compile_in_memory(spec, ["domains.sums.settings.data=ftp://me:secret@host/sums.jsonl"])
    base = tmp_path / "base/sums.yaml"
    base.parent.mkdir()
    base.write_text(spec.read_text())
    write_data(tmp_path / "base/data/sums.jsonl", rows=30)
    spec.write_text("polymath: 1\nextends: base/sums.yaml\nname: sums2\n")
    done = compile_in_memory(spec)
    assert done.spec is not None and done.spec.domains["sums"].settings["data"] == "base/data/sums.jsonl"


def test_a_phase_cannot_play_in_another_file(spec: Path):
    data = {
        **SPEC,
        "teachers": {
            "adder": {
                "from": "base",
                "phases": [
                    {
                        **{"method": "grpo", "domains": ["sums"], "steps": 1, "prompts": 1, "samples": 2, "sequence_tokens": 512},
                        **{"learning_rate": 1e-3, "settings": {"data": "data/sums.jsonl"}},
                    }
                ],
            }
        },
        "routing": [{"domains": ["sums"], "teacher": "adder"}],
    }
    data["placement"] = {**SPEC["placement"], "grpo": {"trainer": {"devices": 1}}}
    spec.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(SpecInvalid, match="a phase plays in the files that its domain names"):
        compile_in_memory(spec)


def test_a_job_refuses_a_file_that_changed_since_the_plan_was_made(spec: Path, tmp_path: Path):
    lock_spec(spec)
    compile_spec(spec, tmp_path / "plan")
    plan, sources = read_plan(tmp_path / "plan"), read_sources(tmp_path / "plan")
    job = plan.job("synthesize")
    context = JobContext(plan=plan, sources=sources, job=job, run_dir=tmp_path / "run", rank=0, world_size=1, barrier=lambda: None)
    domain = context.setting_of("domains", "sums", Domain)
    assert len(open_world(context, "sums", domain).tasks("train", 4, 0)) == 4
    write_data(tmp_path / "data/sums.jsonl", rows=19)
    from polymath.runtime import jobs

    jobs._verified_sources.clear()
    with pytest.raises(UserError, match="has changed since the plan was made") as caught:
        open_world(context, "sums", domain)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("world", "row", "said"),
    [
        ("gsm8k", {"question": "1 + 1?", "answer": "two"}, "`answer` that ends in `#### number`"),
        (
            "ifbench",
            {"key": "7", "prompt": "x", "instruction_id_list": ["count:sheep"], "kwargs": [{}]},
            "no check for count:sheep",
        ),
        ("ifbench", {"prompt": "x", "instruction_id_list": [], "kwargs": []}, "0 instructions"),
        ("bfcl", {"id": "a", "question": [[{"role": "user", "content": "x"}]]}, "one expected call"),
        ("gsm8k", ["no", "object"], "row 1: not a JSON object"),
    ],
)
def test_a_row_that_is_not_what_its_benchmark_publishes_is_named(tmp_path: Path, world: str, row: object, said: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    settings = {"data": str(path), "split": "train"} | ({"answers": str(path)} if world == "bfcl" else {})
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        make_world(world, settings).tasks("train", 1, 0)
    assert caught.value.exit_code == 3 and "rows.jsonl" in caught.value.message
