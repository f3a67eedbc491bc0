"""What the backward pass needs from the forward pass: every saved tensor, in bytes per token of a row.

Counted from the operations of torchtitan 0.3.0's models with our document attention, in eager mode; `docs/numbers.md` compares
with measured tensors. What is left out: fragmentation, and temporaries smaller than the terms of `memory.py`.

Symbols: D width, Q and G widths of all query and all key heads, H of one head, F of an expert, K experts per token, c bytes of the
compute format. Under tensor parallelism the residual stream is split by sequence, everything inside by heads or width.
"""

from dataclasses import dataclass
from functools import cache

from ...specs.families import Dimensions, LinearAttention
from .degrees import Degrees

FLOAT = 4  # bytes of what is computed in float32 whatever the format: norms, gates, router scores, scored expert outputs
INDEX_BYTES = 32  # per visited expert: sort order, token ids, scores and their normalisation
CHUNK = 64  # tokens that the delta rule's kernel solves at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Formats:
    """What decides the bytes of an activation."""

    compute: int  # bytes of the compute format
    experts: int  # bytes of the format that experts' products are computed in; FP8 keeps bfloat16 activations
    fused_norms: bool  # a GPU's RMSNorm kernel saves its input; a CPU's saves two float32 tensors
    checkpointing: str  # none | selective | full


@cache
def saved_by_full_attention(model: Dimensions, formats: Formats, degrees: Degrees) -> float:
    """A layer of full attention, with its norm."""
    c, split = formats.compute, degrees.tensor
    q, g = model.queries / split, model.keys / split
    normed = _norm(model, formats, model.hidden / split) + c * model.hidden  # the normed input is gathered for the projections
    heads = _norm(model, formats, q + g) + 2 * FLOAT * model.rotated  # norms of query and key; cosines and sines
    inside = c * (q + 2 * g) + c * q + FLOAT * model.heads / split  # query, key, value; output; log-sum-exp
    outside = 2 * c * q  # gathered documents and what the output projection reads
    gate = 2 * c * q if model.attention_gate else 0
    return normed + heads + inside + outside + gate


@cache
def saved_by_delta_rule(model: Dimensions, delta: LinearAttention, formats: Formats, degrees: Degrees) -> float:
    """A gated delta rule layer, with its norm. Source: flash-linear-attention's chunk kernel; not measured."""
    c, split = formats.compute, degrees.tensor
    keys, values, heads = delta.keys / split, delta.values / split, delta.value_heads / split
    normed = 2 * FLOAT * model.hidden / split + c * model.hidden
    convolved = c * (2 * keys + values)
    wide_keys = heads * delta.key_head_dim  # keys are repeated for every value head
    kernel = c * (2 * wide_keys + values) + c * CHUNK * heads + 4 * FLOAT * heads
    gated_norm = 4 * FLOAT * values + c * values + c * values
    return normed + convolved + kernel + gated_norm


@cache
def saved_by_mixture(model: Dimensions, formats: Formats, degrees: Degrees) -> float:
    """The experts of a layer, with their norm and router; tokens are spread evenly over experts."""
    c, e, split = formats.compute, formats.experts, degrees.tensor
    by_expert_rank = degrees.expert > 1
    tokens = 1 / split if by_expert_rank else 1  # expert parallelism splits tokens where tensor parallelism splits widths
    inner = model.expert_hidden * (1 if by_expert_rank else 1 / split)
    normed = _norm(model, formats, model.hidden / split) + c * model.hidden * tokens
    router_input = FLOAT * model.hidden if formats.fused_norms and c != FLOAT else 0  # a GPU's router computes in float32
    router = tokens * (router_input + (FLOAT if formats.fused_norms else c) * model.experts)
    casts = 2 if c == FLOAT and e != FLOAT else 1  # the input is cast once for each of two products
    products = casts * e * model.hidden + 4 * e * inner  # input; gate before and after silu, up, their product
    visits = tokens * model.experts_per_token * (products + FLOAT * model.hidden + INDEX_BYTES)
    return normed + router + visits + _saved_by_shared_expert(model, formats, degrees)


def _saved_by_shared_expert(model: Dimensions, formats: Formats, degrees: Degrees) -> float:
    if not model.shared_expert_hidden:
        return 0
    c, split = formats.compute, degrees.tensor
    gathered = c * model.hidden if split > 1 else 0
    return gathered + 4 * c * model.shared_expert_hidden / split + c * model.hidden / split


def _norm(model: Dimensions, formats: Formats, width: float) -> float:
    """An RMSNorm, without its output. Families with offset norms compute them in float32 everywhere."""
    composite = not formats.fused_norms or model.linear_attention is not None
    return 2 * FLOAT * width if composite else formats.compute * width


@cache
def saved_by_layers(model: Dimensions, formats: Formats, degrees: Degrees) -> float:
    """All layers of a rank, by what checkpointing keeps."""
    stages = degrees.pipeline
    residual = formats.compute * model.hidden / degrees.tensor
    if formats.checkpointing == "full":
        return model.layers / stages * residual
    if formats.checkpointing == "selective":
        return (model.layers * residual + kept_by_selection(model, formats, degrees)) / stages
    kept = model.full_layers * saved_by_full_attention(model, formats, degrees)
    if model.linear_attention is not None:
        kept += model.linear_layers * saved_by_delta_rule(model, model.linear_attention, formats, degrees)
    return (kept + model.layers * saved_by_mixture(model, formats, degrees)) / stages


@cache
def cast_experts(model: Dimensions, formats: Formats, degrees: Degrees) -> int:
    """Bytes of the copy that bfloat16 experts make of one layer's float32 weights, where the compute format is float32 and so FSDP
    casts nothing. It lives until the layer's backward pass."""
    if formats.compute != FLOAT or formats.experts == FLOAT:
        return 0
    split = degrees.expert if degrees.expert > 1 else degrees.tensor
    return formats.experts * 3 * model.experts * model.hidden * model.expert_hidden // split


@cache
def largest_layer(model: Dimensions, formats: Formats, degrees: Degrees) -> float:
    """One layer in full: what checkpointing computes again at once."""
    mixer = saved_by_full_attention(model, formats, degrees)
    if model.linear_attention is not None:
        mixer = max(mixer, saved_by_delta_rule(model, model.linear_attention, formats, degrees))
    return mixer + saved_by_mixture(model, formats, degrees)


def kept_by_selection(model: Dimensions, formats: Formats, degrees: Degrees) -> float:
    """All layers' outputs that torchtitan's selective checkpointing keeps beyond each layer's input: every second product of a
    linear layer from the first on (the router's is computed again), attention, routing and what expert parallelism exchanged."""
    c, split = formats.compute, degrees.tensor
    exchanged = 2 * c * model.experts_per_token * model.hidden / split if degrees.expert > 1 else 0
    routing = model.experts_per_token * (FLOAT + 8)
    shared = model.shared_expert_hidden
    tail = [shared, shared, 1, model.hidden] if shared else []  # gate's, up's, the scalar's and down's products
    width = 2 * model.queries if model.attention_gate else model.queries
    projections = [width, model.keys, model.keys] if model.linear_attention is not None else [width + 2 * model.keys]
    attended = c * model.queries + FLOAT * model.heads if formats.fused_norms else 0  # a CPU's attention is computed again
    kept = model.full_layers * (c * sum([*projections, model.hidden, *tail][::2]) + attended) / split
    if model.linear_attention is not None:
        d = model.linear_attention
        products = [d.keys, d.keys, d.values, d.values, d.value_heads, d.value_heads, model.hidden, *tail]
        kept += model.linear_layers * c * sum(products[::2]) / split
    if formats.experts == FLOAT:  # float32 experts are products one by one, and so every second one counts too
        visits = model.experts_per_token / (split if degrees.expert > 1 else 1)
        inner = model.expert_hidden / (1 if degrees.expert > 1 else split)
        kept += model.layers * FLOAT * visits * (2 * inner + model.hidden) / 2
    return kept + model.layers * (exchanged + routing)
