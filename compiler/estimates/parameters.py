"""Every parameter tensor of a model, and the part of it that a rank holds. Exact: a test compares with torchtitan's own model.

Sources: torchtitan 0.3.0, models/qwen3 and qwen3_5 (shapes), their sharding.py (tensor axis), distributed/fsdp.py (data axes).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from ...specs.families import Dimensions, LinearAttention, Vision
from .degrees import Degrees

COLOURS = 3  # of a pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A tensor that occurs `copies` times. `tensor_dim` is what tensor parallelism splits; None means replicated."""

    component: str  # embedding | output | attention | delta | router | experts | shared expert | norms | vision
    shape: tuple[int, ...]
    copies: int = 1
    tensor_dim: int | None = None

    @property
    def count(self) -> int:
        """Numbers in all copies."""
        return prod(self.shape) * self.copies


@cache
def parameters(model: Dimensions) -> tuple[Parameter, ...]:
    """Every tensor of a model."""
    made = [
        Parameter(component="embedding", shape=(model.vocabulary or 0, model.hidden), tensor_dim=0),
        Parameter(component="norms", shape=(model.hidden,), copies=1 + 2 * model.layers),
    ]
    if not model.tied_embeddings:
        made.append(Parameter(component="output", shape=(model.vocabulary or 0, model.hidden), tensor_dim=0))
    made += _repeated(attention(model), model.full_layers)
    if model.linear_attention is not None:
        made += _repeated(delta_layer(model, model.linear_attention), model.linear_layers)
    made += _repeated(mixture(model), model.layers)
    if model.vision is not None:
        made += vision_tower(model, model.vision)
    return tuple(made)


def attention(model: Dimensions) -> Iterator[Parameter]:
    """One layer of full attention. torchtitan may fuse query, key and value; rows are split alike."""
    gate = 2 if model.attention_gate else 1
    for width in (gate * model.queries, model.keys, model.keys):
        yield Parameter(component="attention", shape=(width, model.hidden), tensor_dim=0)
    yield Parameter(component="attention", shape=(model.hidden, model.queries), tensor_dim=1)
    yield Parameter(component="attention", shape=(model.head_dim,), copies=2)  # norms of query and key


def delta_layer(model: Dimensions, delta: LinearAttention) -> Iterator[Parameter]:
    """One gated delta rule layer."""
    for width in (delta.keys, delta.keys, delta.values, delta.values, delta.value_heads, delta.value_heads):
        yield Parameter(component="delta", shape=(width, model.hidden), tensor_dim=0)
    for width in (delta.keys, delta.keys, delta.values):
        yield Parameter(component="delta", shape=(width, 1, delta.conv_kernel), tensor_dim=0)
    yield Parameter(component="delta", shape=(delta.value_heads,), copies=2, tensor_dim=0)  # decay and time step
    yield Parameter(component="delta", shape=(delta.value_head_dim,))  # norm
    yield Parameter(component="delta", shape=(model.hidden, delta.values), tensor_dim=1)


def mixture(model: Dimensions) -> Iterator[Parameter]:
    """The experts of one layer, their router and the shared expert."""
    yield Parameter(component="router", shape=(model.experts, model.hidden))
    wide, deep = (model.experts, model.expert_hidden, model.hidden), (model.experts, model.hidden, model.expert_hidden)
    yield Parameter(component="experts", shape=wide, copies=2, tensor_dim=1)
    yield Parameter(component="experts", shape=deep, tensor_dim=2)
    if model.shared_expert_hidden:
        inner = model.shared_expert_hidden
        yield Parameter(component="shared expert", shape=(inner, model.hidden), copies=2, tensor_dim=0)
        yield Parameter(component="shared expert", shape=(model.hidden, inner), tensor_dim=1)
        yield Parameter(component="shared expert", shape=(1, model.hidden))  # its gate


def vision_tower(model: Dimensions, vision: Vision) -> list[Parameter]:
    """The vision tower, which ends in the model's width."""
    made: list[Parameter] = []

    def linear(width_in: int, width_out: int, copies: int = 1, split: int | None = None) -> None:
        """A layer with bias; of one split by columns (dimension 1) every rank keeps the whole bias."""
        made.append(Parameter(component="vision", shape=(width_out, width_in), copies=copies, tensor_dim=split))
        made.append(Parameter(component="vision", shape=(width_out,), copies=copies, tensor_dim=0 if split == 0 else None))

    merged = vision.hidden * vision.merge**2
    pixels = COLOURS * vision.temporal_patch * vision.patch**2
    made.append(Parameter(component="vision", shape=(vision.positions, vision.hidden)))
    linear(pixels, vision.hidden)
    linear(vision.hidden, vision.hidden, 3 * vision.layers, 0)
    linear(vision.hidden, vision.hidden, vision.layers, 1)
    linear(vision.hidden, vision.ffn_hidden, vision.layers, 0)
    linear(vision.ffn_hidden, vision.hidden, vision.layers, 1)
    made.append(Parameter(component="vision", shape=(vision.hidden,), copies=4 * vision.layers + 2))  # norms, with bias
    linear(merged, merged, 1, 0)
    linear(merged, model.hidden, 1, 1)
    return made


def count_by_component(model: Dimensions) -> dict[str, int]:
    """Parameters of every component."""
    counts: Counter[str] = Counter()
    for parameter in parameters(model):
        counts[parameter.component] += parameter.count
    return dict(counts)


@cache
def total(model: Dimensions) -> int:
    """All parameters."""
    return sum(parameter.count for parameter in parameters(model))


@cache
def active(model: Dimensions) -> int:
    """Parameters that one token is multiplied with: of the experts those it visits, no embedding (a lookup), no vision tower."""
    counts = count_by_component(model)
    visited = counts["experts"] * model.experts_per_token // model.experts
    output = counts.get("output", counts["embedding"])
    dense = sum(counts.get(name, 0) for name in ("attention", "delta", "router", "shared expert"))
    return visited + output + dense


def local_shape(parameter: Parameter, model: Dimensions, degrees: Degrees) -> tuple[int, ...]:
    """The shard of rank 0, which holds the largest: torch splits as `torch.chunk` does, so shards round up."""
    shape = list(parameter.shape)
    if parameter.component == "experts":
        if degrees.expert > 1:
            _split(shape, 0, degrees.expert)
        else:
            _split(shape, parameter.tensor_dim, degrees.tensor)
        parts = degrees.expert_fsdp
        too_many = parts * degrees.expert > model.experts  # then torchtitan splits the next dimension
        _split(shape, 1 if too_many else 0, parts)
    else:
        _split(shape, parameter.tensor_dim, degrees.tensor)
        _split(shape, 0, degrees.fsdp)
    return tuple(shape)


@cache
def local_count(model: Dimensions, degrees: Degrees) -> int:
    """Parameters of the fullest rank; of pipeline stages, that with the most layers beside the embedding or the output."""
    held: Counter[str] = Counter()
    for parameter in parameters(model):
        held[parameter.component] += prod(local_shape(parameter, model, degrees)) * parameter.copies
    if degrees.pipeline == 1:
        return held.total()
    first, last = held.pop("embedding") + held.pop("vision", 0), held.pop("output", 0)
    layers = -(-model.layers // degrees.pipeline)
    return -(-held.total() * layers // model.layers) + max(first, last)


@cache
def gathered_layer(model: Dimensions, degrees: Degrees) -> int:
    """Parameters of the largest layer once FSDP has gathered it: dense parts whole, experts those of one expert rank."""
    dense = Degrees(tensor=degrees.tensor)
    mixers: Sequence[tuple[Parameter, ...]] = [tuple(attention(model))]
    if model.linear_attention is not None:
        mixers = [*mixers, tuple(delta_layer(model, model.linear_attention))]
    mixer = max(_gathered(one, model, dense) for one in mixers)
    experts = [one for one in mixture(model) if one.component == "experts"]
    rest = [one for one in mixture(model) if one.component != "experts"]
    split = degrees.expert if degrees.expert > 1 else degrees.tensor
    return mixer + _gathered(rest, model, dense) + sum(one.count for one in experts) // split + 2 * model.hidden


def _gathered(one: Sequence[Parameter], model: Dimensions, degrees: Degrees) -> int:
    return sum(prod(local_shape(parameter, model, degrees)) * parameter.copies for parameter in one)


def _repeated(one: Iterator[Parameter], times: int) -> list[Parameter]:
    return [
        Parameter(component=part.component, shape=part.shape, copies=part.copies * times, tensor_dim=part.tensor_dim)
        for part in one
    ]


def _split(shape: list[int], dim: int | None, parts: int) -> None:
    if dim is not None:
        shape[dim] = -(-shape[dim] // parts)
