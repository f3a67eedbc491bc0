"""Properties of the formulas that a plan relies on; `test_calibration.py` compares with measured bytes."""

from dataclasses import replace

import pytest
from polymath.compiler.estimates.activations import Formats, largest_layer, saved_by_layers
from polymath.compiler.estimates.compute import communication, flops, forward_flops, kv_bytes_per_token
from polymath.compiler.estimates.degrees import Degrees
from polymath.compiler.estimates.memory import Load, memory
from polymath.compiler.estimates.parameters import active
from polymath.compiler.estimates.serving import serving, smallest_copy
from polymath.specs.families import SIZES
from polymath.specs.hardware import ACCELERATORS

HYBRID, PLAIN = SIZES["qwen3_5_moe"]["35b-a3b"], SIZES["qwen3_moe"]["30b-a3b"]
FORMATS = Formats(compute=2, experts=2, fused_norms=True, checkpointing="none")
LOAD = Load(rows=1, sequence_tokens=8192, formats=FORMATS)
MESH = Degrees(shard=16, expert=8)


def test_a_rank_holds_sixteen_bytes_for_each_parameter_of_its_shard() -> None:
    needed = memory(HYBRID, MESH, LOAD)

    assert needed.parameters.value + needed.gradients.value + needed.optimizer.value == 16 * needed.parameters.inputs["P"]


def test_checkpointing_keeps_less_the_more_it_computes_again() -> None:
    kept = [saved_by_layers(HYBRID, replace(FORMATS, checkpointing=name), MESH) for name in ("none", "selective", "full")]

    assert kept == sorted(kept, reverse=True)
    assert kept[2] == HYBRID.layers * HYBRID.hidden * FORMATS.compute


@pytest.mark.parametrize("model", [HYBRID, PLAIN])
def test_splitting_a_layer_never_makes_it_larger(model: object) -> None:
    whole = largest_layer(model, FORMATS, Degrees(shard=16, expert=8))  # type: ignore[arg-type]
    split = largest_layer(model, FORMATS, Degrees(shard=8, expert=8, tensor=2))  # type: ignore[arg-type]

    assert split < whole


def test_logits_shrink_with_the_parts_of_the_loss_and_are_absent_in_distillation() -> None:
    whole, parts = memory(HYBRID, MESH, LOAD), memory(HYBRID, MESH, replace(LOAD, head_tokens=1024))
    distilled = memory(HYBRID, MESH, replace(LOAD, top_k=64))

    assert parts.logits.value == pytest.approx(whole.logits.value / 8)
    assert distilled.logits.name == "loss without logits" and distilled.logits.value < whole.logits.value / 10


def test_a_loss_that_reads_the_whole_vocabulary_takes_more_but_never_all_logits_at_once() -> None:
    support, pieces = (memory(HYBRID, MESH, replace(LOAD, top_k=64, whole_vocabulary=one)).logits for one in (False, True))
    many, few = (memory(HYBRID, MESH, replace(LOAD, teacher_values=k, whole_vocabulary=True)) for k in (HYBRID.vocabulary, 1))

    assert pieces.name == "logits of some tokens" and support.value < pieces.value < memory(HYBRID, MESH, LOAD).logits.value
    assert many.batch.value > 1000 * few.batch.value  # a teacher's whole distribution at every token


def test_a_larger_support_takes_more() -> None:
    sizes = [memory(HYBRID, MESH, replace(LOAD, top_k=k)).total for k in (2, 64, 1024)]

    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_every_symbol_of_a_formula_has_its_value() -> None:
    for one in memory(HYBRID, MESH, LOAD).quantities:
        assert one.inputs and one.explained().startswith(one.formula), one.name


def test_a_token_costs_two_flops_for_each_parameter_that_it_meets_and_more_the_farther_it_looks() -> None:
    near, far = forward_flops(PLAIN, 0), forward_flops(PLAIN, 65_536)

    assert near == 2 * active(PLAIN)
    assert far - near == 4 * PLAIN.queries * 65_536 * PLAIN.layers
    assert flops("training", PLAIN, 100, 1000, 3.0).value == 300 * forward_flops(PLAIN, 500)


def test_only_what_is_split_is_sent() -> None:
    alone = communication(PLAIN, Degrees(), FORMATS, 1000, 1)
    spread = {one.name for one in communication(PLAIN, Degrees(replicate=2, shard=8, expert=8, tensor=2), FORMATS, 1000, 1)}

    assert alone == ()
    assert spread == {
        "weights gathered",
        "gradients reduced",
        "gradients between replicas",
        "tokens to experts",
        "tensor parallel",
    }


def test_a_cache_holds_keys_and_values_of_the_layers_with_full_attention() -> None:
    assert kv_bytes_per_token(PLAIN) == 2 * 2 * 4 * 128 * 48
    assert kv_bytes_per_token(HYBRID) == 2 * 2 * 2 * 256 * 10


def test_an_engine_takes_the_fewest_devices_that_hold_a_copy_and_an_episode() -> None:
    h100, h200 = ACCELERATORS["h100"], ACCELERATORS["h200"]

    assert smallest_copy(PLAIN, h200, 8, 131_072) == 1
    assert smallest_copy(PLAIN, h100, 8, 262_144) == 2  # 57 GiB of weights and 24 of cache on 71
    assert smallest_copy(PLAIN, h100, 1, 262_144) is None
    assert serving(PLAIN, h200, 2, 131_072).cache.value == serving(PLAIN, h200, 1, 131_072).cache.value / 2
