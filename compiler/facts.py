"""What the capability table is asked about: a spec's model, machine, engines and number formats, and a mesh."""

from functools import cache
from math import gcd
from typing import Any

from ..specs.families import Dimensions
from ..specs.hardware import ACCELERATORS
from ..specs.model import Spec
from .estimates.degrees import Degrees
from .estimates.parameters import total

FP8_ALIGNMENT = 16  # Transformer Engine's, of all recipes but MXFP8 (32) and NVFP4 (128)
MXFP8_ALIGNMENT = 32


def facts_of_spec(spec: Spec, model: Dimensions | None) -> dict[str, Any]:
    """Everything but the mesh."""
    cluster, experts = spec.cluster, spec.precision.experts
    capability = ACCELERATORS[cluster.accelerator].compute_capability
    return {
        "family": spec.model.family,
        "accelerator": cluster.accelerator,
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "torch": cluster.software.torch,
        "cuda": cluster.software.cuda,
        "compute": spec.precision.compute,
        "experts_format": experts.format,
        "experts_backend": experts.backend,
        "rollout": spec.engines.rollout,
        "scorer": spec.engines.scorer,
        "engines": "vllm" if "vllm" in (spec.engines.rollout, spec.engines.scorer) else "transformers",
        **_of_scorers(spec),
        "fp8_alignment": MXFP8_ALIGNMENT if experts.format == "mxfp8" else FP8_ALIGNMENT,
        **(_of_model(model) if model is not None else {}),
    }


def _of_scorers(spec: Spec) -> dict[str, Any]:
    """How teachers are asked, for what, and how many of them have no copy of an engine to themselves."""
    distill, placed = spec.student.distill, spec.placement.distill
    if distill is None or spec.engines.scorer != "vllm":
        return {}
    own = {rule.teacher for rule in spec.routing} - spec.engines.teachers.keys()
    devices = placed.scorer.devices if placed is not None and placed.scorer is not None else 0
    return {
        "asked_over": "http" if spec.engines.transport == "http" or spec.engines.teachers else "process",
        "transport": spec.engines.transport or "process",
        "support": distill.loss.support.source if distill.loss.estimator == "exact" else None,
        "teachers_in_turns": max(0, len(own) - devices),
    }


@cache
def _of_model(model: Dimensions) -> dict[str, Any]:
    delta = model.linear_attention
    return {
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "delta_key_heads": None if delta is None else delta.key_heads,
        "layers": model.layers,
        "experts": model.experts,
        "tied_embeddings": model.tied_embeddings,
        "parameters": total(model),
        "fp8_width": gcd(model.hidden, model.expert_hidden),
    }


def facts_of_mesh(degrees: Degrees, sequence_tokens: int) -> dict[str, Any]:
    """The degrees of a mesh, and what they cut a row into."""
    return {
        "expert": degrees.expert,
        "tensor": degrees.tensor,
        "context": degrees.context,
        "pipeline": degrees.pipeline,
        "sequence_tokens": sequence_tokens,
        "sequence_parts": degrees.tensor * (2 * degrees.context if degrees.context > 1 else 1),
    }
