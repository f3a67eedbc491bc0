"""The capability table: every "no" has a reason and a source, and refuses what it says and nothing else."""

from string import Formatter
from typing import Any

import pytest
from polymath.compiler.capability import broken_limits, choose, table

PLAIN: dict[str, Any] = {  # a combination that breaks nothing
    "family": "qwen3_5_moe",
    "accelerator": "h200",
    "compute_capability": "9.0",
    "torch": "2.15.0",
    "cuda": "13.0",
    "compute": "bfloat16",
    "experts_format": "bfloat16",
    "experts_backend": None,
    "rollout": "vllm",
    "scorer": "vllm",
    "engines": "vllm",
    "asked_over": "process",
    "transport": "process",
    "support": "teacher",
    "teachers_in_turns": 1,
    "fp8_alignment": 16,
    "fp8_width": 512,
    "kv_heads": 2,
    "head_dim": 256,
    "delta_key_heads": 16,
    "layers": 40,
    "experts": 256,
    "tied_embeddings": False,
    "parameters": 35_107_181_936,
    "expert": 8,
    "tensor": 2,
    "context": 1,
    "pipeline": 1,
    "sequence_tokens": 131_072,
    "sequence_parts": 2,
}
CPU = {"accelerator": "cpu", "compute_capability": None, "cuda": None, "torch": "2.13.0"}
TE = {"experts_backend": "te"}


def broken(**changes: Any) -> set[str]:
    return {limit.name for limit in broken_limits({**PLAIN, **changes})}


def test_a_combination_that_works_breaks_no_limit() -> None:
    assert broken() == set()


@pytest.mark.parametrize(
    ("name", "changes", "legal"),
    [
        ("hybrid-context", {"context": 2}, {"context": 2, "family": "qwen3_moe"}),
        ("cpu-context", {**CPU, "context": 2, "family": "qwen3_moe"}, {"context": 2, "family": "qwen3_moe"}),
        ("tensor-heads", {"tensor": 4}, {"tensor": 1}),
        ("tensor-delta-heads", {"tensor": 2, "delta_key_heads": 3}, {"tensor": 2, "delta_key_heads": None}),
        ("pipeline-torch", {"pipeline": 2, "torch": "2.13.0"}, {"pipeline": 2, "torch": "2.15.0"}),
        ("pipeline-layers", {"pipeline": 64}, {"pipeline": 40}),
        ("pipeline-tied", {"pipeline": 2, "tied_embeddings": True}, {"pipeline": 1, "tied_embeddings": True}),
        ("sequence-split", {"sequence_tokens": 131_073}, {"sequence_tokens": 131_073, "sequence_parts": 1}),
        ("te-cpu", {**CPU, **TE, "experts_format": "fp8_blockwise"}, {**CPU, "experts_backend": "reference"}),
        (
            "fp8-units",
            {**TE, "experts_format": "fp8_current", "compute_capability": "8.0"},
            {**TE, "experts_format": "fp8_current"},
        ),
        (
            "fp8-blockwise-hopper",
            {**TE, "experts_format": "fp8_blockwise", "compute_capability": "8.9"},
            {**TE, "experts_format": "fp8_blockwise"},
        ),
        (
            "fp8-blockwise-cuda",
            {**TE, "experts_format": "fp8_blockwise", "cuda": "12.8"},
            {**TE, "experts_format": "fp8_blockwise", "cuda": "12.9"},
        ),
        (
            "mxfp8-blackwell",
            {**TE, "experts_format": "mxfp8"},
            {**TE, "experts_format": "mxfp8", "compute_capability": "10.0", "fp8_alignment": 32},
        ),
        (
            "fp8-widths",
            {**TE, "experts_format": "fp8_current", "fp8_width": 24},
            {**TE, "experts_format": "fp8_current", "fp8_width": 48},
        ),
        ("embedded-rollout-size", {"rollout": "transformers"}, {"rollout": "transformers", "parameters": 1_000_000_000}),
        ("embedded-scorer-size", {"scorer": "transformers"}, {"scorer": "transformers", "parameters": 2_000_000_000}),
        ("http-full-vocabulary", {"asked_over": "http", "support": "full"}, {"support": "full"}),
        ("http-turns", {"transport": "http"}, {"transport": "http", "teachers_in_turns": 0}),
        ("vllm-cpu-torch", {**CPU, "torch": "2.15.0"}, CPU),
        ("vllm-cpu-heads", {**CPU, "head_dim": 16}, CPU),
    ],
)
def test_every_limit_refuses_what_it_says_and_lets_its_neighbour_pass(
    name: str, changes: dict[str, Any], legal: dict[str, Any]
) -> None:
    assert name in broken(**changes)
    assert name not in broken(**legal)


def test_the_cases_above_are_all_limits() -> None:
    marks = test_every_limit_refuses_what_it_says_and_lets_its_neighbour_pass.pytestmark  # type: ignore[attr-defined]

    assert {case[0] for case in marks[0].args[1]} == {limit.name for limit in table().limits}


def test_every_no_has_a_reason_of_known_facts_and_a_source() -> None:
    for limit in table().limits:
        named = {field for _, field, _, _ in Formatter().parse(limit.reason) if field}
        assert named <= PLAIN.keys(), limit.name
        assert limit.when.keys() <= PLAIN.keys(), limit.name
        assert len(limit.source) > 10, limit.name
        assert limit.instead or limit.blames in ("context", "tensor", "pipeline", "expert"), limit.name


def test_what_is_not_known_is_not_refused() -> None:
    assert broken(pipeline=64, layers=None) == set()


@pytest.mark.parametrize(("torch", "backend"), [("2.13.0", "partial_dtensor"), ("2.15.0", "spmd_types")])
def test_the_spmd_backend_is_chosen_by_the_version_of_torch(torch: str, backend: str) -> None:
    assert choose("spmd_backend", {"torch": torch}).value == backend
