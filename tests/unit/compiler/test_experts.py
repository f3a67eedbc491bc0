"""A format of experts compiles to a recipe of Transformer Engine with every argument that decides a number."""

import json
from pathlib import Path

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.experts import RECIPES, SCALED_FORMATS

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
SPLIT, FAST = {"use_split_accumulator": True}, {"use_split_accumulator": False}
EXPECTED = {
    "fp8_blockwise": {
        "name": "Float8BlockScaling",
        "arguments": {
            "use_f32_scales": False,
            "fp8_format": "E4M3",
            "x_block_scaling_dim": 1,
            "w_block_scaling_dim": 2,
            "grad_block_scaling_dim": 1,
            "fp8_gemm_fprop": SPLIT,
            "fp8_gemm_dgrad": SPLIT,
            "fp8_gemm_wgrad": SPLIT,
            "backward_override": None,
        },
    },
    "fp8_current": {
        "name": "Float8CurrentScaling",
        "arguments": {
            "use_power_2_scales": False,
            "fp8_format": "HYBRID",
            "fp8_gemm_fprop": FAST,
            "fp8_gemm_dgrad": SPLIT,
            "fp8_gemm_wgrad": SPLIT,
            "backward_override": None,
        },
    },
    "fp8_delayed": {
        "name": "DelayedScaling",
        "arguments": {
            "margin": 0,
            "fp8_format": "HYBRID",
            "amax_history_len": 1024,
            "amax_compute_algo": "max",
            "reduce_amax": True,
            "backward_override": None,
        },
    },
    "mxfp8": {
        "name": "MXFP8BlockScaling",
        "arguments": {"margin": 0, "fp8_format": "E4M3", "backward_override": None, "enable_2d_quantization": False},
    },
}


def compiled(folder: Path, *overrides: str) -> dict[str, dict[str, object]]:
    """The settings of every job, by its id."""
    compile_spec(TEMPLATE, folder, overrides)
    jobs = [json.loads(path.read_text()) for path in (folder / "jobs").glob("*.json")]
    return {job["id"]: job for job in jobs}


@pytest.mark.parametrize("name", SCALED_FORMATS)
def test_training_jobs_hold_the_exact_recipe_and_no_other_job_does(name: str, tmp_path: Path) -> None:
    jobs = compiled(tmp_path, f"precision.experts={{format: {name}, backend: reference}}")
    holding = {job for job, content in jobs.items() if "experts_recipe" in content["settings"]}
    assert holding == {job for job, content in jobs.items() if content["kind"] in ("sft", "grpo", "distill")}
    assert jobs["sft"]["settings"]["experts_recipe"] == EXPECTED[name]


def test_experts_that_are_not_scaled_have_no_recipe(tmp_path: Path) -> None:
    assert not any("experts_recipe" in job["settings"] for job in compiled(tmp_path).values())
    assert set(EXPECTED) == set(RECIPES)


def test_a_layer_that_stays_in_bfloat16_is_another_recipe_and_none_is_the_same_as_ever(tmp_path: Path) -> None:
    experts = "precision.experts={format: fp8_current, backend: reference, except_layers: %s}"
    found = {
        layers: compiled(tmp_path / str(number), experts % layers)["sft"]["recipe_digest"]
        for number, layers in enumerate(("[]", "[0]", "[1]"))
    }
    plain = compiled(tmp_path / "plain", "precision.experts={format: fp8_current, backend: reference}")["sft"]["recipe_digest"]
    assert len(set(found.values())) == 3
    assert found["[]"] == plain
