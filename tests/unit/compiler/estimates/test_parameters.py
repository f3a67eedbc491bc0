"""The formulas count what torchtitan builds and shards."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from polymath.compiler.estimates.degrees import Degrees
from polymath.compiler.estimates.parameters import active, count_by_component, local_count, total
from polymath.specs.families import SIZES, Dimensions, LinearAttention, Vision

SCRIPT = Path(__file__).with_name("titan_shards.py")
QWEN3_30B = SIZES["qwen3_moe"]["30b-a3b"]
QWEN35_35B = SIZES["qwen3_5_moe"]["35b-a3b"]
QWEN3_TINY = Dimensions(  # torchtitan's debugmodel_moe
    vocabulary=2048,
    hidden=256,
    layers=8,
    heads=16,
    kv_heads=8,
    head_dim=128,
    experts=64,
    experts_per_token=8,
    expert_hidden=768,
    context_tokens=4096,
    rope_theta=1e6,
)
QWEN35_TINY = Dimensions(
    vocabulary=248_320,
    hidden=256,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=64,
    experts=8,
    experts_per_token=2,
    expert_hidden=256,
    context_tokens=4096,
    rope_theta=1e7,
    shared_expert_hidden=256,
    attention_gate=True,
    rotary_dim=16,
    linear_attention=LinearAttention(
        full_attention_every=4, key_heads=2, value_heads=4, key_head_dim=64, value_head_dim=64, conv_kernel=4
    ),
    vision=Vision(hidden=256, ffn_hidden=512, layers=2, heads=4, patch=16, temporal_patch=2, merge=2, positions=1024),
)


@pytest.mark.parametrize(
    ("package", "flavor", "model", "layout"),
    [
        ("qwen3", "30B-A3B", QWEN3_30B, {"world": 256, "expert": 8}),
        ("qwen3_5", "35B-A3B", QWEN35_35B, {"world": 256, "expert": 8}),
        ("qwen3", "debugmodel_moe", QWEN3_TINY, {"world": 8, "tensor": 2}),
        ("qwen3_5", "debugmodel_moe", QWEN35_TINY, {"world": 16, "expert": 4, "tensor": 2, "replicate": 2}),
    ],
)
@pytest.mark.multi_rank
def test_counts_and_shards_are_torchtitans_to_the_last_parameter(
    package: str, flavor: str, model: Dimensions, layout: dict[str, int]
) -> None:
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), package, flavor, json.dumps(layout)], capture_output=True, text=True, check=True, timeout=120
    )
    built = json.loads(finished.stdout.splitlines()[-1])
    ours = count_by_component(model)
    replicate, tensor = layout.get("replicate", 1), layout.get("tensor", 1)
    degrees = Degrees(
        replicate=replicate, shard=layout["world"] // replicate // tensor, expert=layout.get("expert", 1), tensor=tensor
    )

    assert total(model) == built["counts"]["all"]
    assert ours.get("vision", 0) == built["counts"]["vision"]
    assert ours["experts"] == built["counts"]["experts"]
    assert ours["embedding"] == built["counts"]["embedding"]
    assert local_count(model, degrees) == built["local"]


def test_counts_are_those_that_the_models_are_known_by() -> None:
    assert total(QWEN35_35B) == 35_107_181_936
    assert total(QWEN3_30B) == 30_532_122_624
    assert active(QWEN35_35B) == pytest.approx(2.95e9, rel=0.01)  # with the embedding's 0.51e9 these are the 3.45e9 of its name


def test_tied_embeddings_are_counted_once() -> None:
    tied = replace(QWEN3_TINY, tied_embeddings=True)

    assert total(QWEN3_TINY) - total(tied) == QWEN3_TINY.vocabulary * QWEN3_TINY.hidden  # type: ignore[operator]


def test_more_ranks_never_hold_more() -> None:
    held = [local_count(QWEN35_35B, Degrees(shard=shard, expert=8)) for shard in (8, 16, 32, 64, 128, 256)]

    assert held == sorted(held, reverse=True)
    assert held[0] * 8 == pytest.approx(total(QWEN35_35B), rel=1e-3)
