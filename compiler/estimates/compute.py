"""FLOPs and bytes moved. Multiply and add are two FLOPs; a backward pass costs two forward passes.

Sources: torchtitan 0.3.0, models/utils.py (`get_moe_model_nparams_and_flops`) for products with parameters; attention here is
causal, so it costs half of the square that torchtitan counts. Collectives: a ring of n ranks moves (n - 1)/n of the data.
"""

from functools import cache

from ...specs.families import Dimensions
from .activations import FLOAT, Formats
from .degrees import Degrees
from .parameters import active, gathered_layer, local_count
from .quantity import Quantity


@cache
def forward_flops(model: Dimensions, attended_tokens: float) -> float:
    """FLOPs of one token's forward pass, when it attends to so many tokens on average."""
    attention = 4 * model.queries * attended_tokens * model.full_layers  # scores, then the weighted sum of values
    recurrence = 0.0
    if model.linear_attention is not None:  # state times key, update, state times query, for every value head
        delta = model.linear_attention
        recurrence = 8 * delta.value_heads * delta.key_head_dim * delta.value_head_dim * model.linear_layers
    return 2 * active(model) + attention + recurrence


def document_flops(model: Dimensions) -> dict[str, float]:
    """A document's forward pass is `per_token * T + per_square * T^2` FLOPs for its T tokens, which attend to themselves alone."""
    per_token = forward_flops(model, 0)
    return {"per_token": per_token, "per_square": (forward_flops(model, 1) - per_token) / 2}


def flops(name: str, model: Dimensions, tokens: float, document_tokens: float, passes: float) -> Quantity:
    """FLOPs over some tokens in documents of a length: 1 pass to score, 3 to train, 4 with all activations computed again."""
    each = forward_flops(model, document_tokens / 2)
    return Quantity(
        name=name,
        value=passes * tokens * each,
        unit="FLOPs",
        formula="n x T x f, f = 2 x A + 4 x Q x l x d / 2: n passes; A parameters that a token meets, l layers of full attention "
        "with Q queries, documents of d tokens" + (", and the recurrences of the others" if model.linear_layers else ""),
        inputs={
            "n": passes,
            "T": tokens,
            "f": each,
            "A": active(model),
            "Q": model.queries,
            "l": model.full_layers,
            "d": document_tokens,
        },
    )


def passes_of_training(checkpointing: str) -> float:
    """Forward passes that a training step is worth. Selective checkpointing repeats about half of the products."""
    return {"none": 3.0, "selective": 3.5, "full": 4.0}[checkpointing]


def communication(model: Dimensions, degrees: Degrees, formats: Formats, tokens: int, micro_batches: int) -> tuple[Quantity, ...]:
    """Bytes that one rank sends in an optimizer step, by what for. `tokens` are those of its rows in one micro-batch."""
    c, d = formats.compute, model.hidden
    layers = model.layers // degrees.pipeline
    gathered = gathered_layer(model, degrees)
    found: list[Quantity] = []

    def add(name: str, value: float, formula: str, **inputs: float) -> None:
        if value:
            found.append(Quantity(name=name, value=value, unit="bytes", formula=formula, inputs=inputs))

    ring = _ring(degrees.fsdp)
    again = 3 if formats.checkpointing == "full" else 2
    add(
        "weights gathered",
        micro_batches * 2 * layers * gathered * c * ring,
        "m x 2 x l x L x c x r: forward and backward, every layer of L parameters",
        m=micro_batches,
        l=layers,
        L=gathered,
        c=c,
        r=ring,
    )
    add(
        "gradients reduced",
        micro_batches * layers * gathered * FLOAT * ring,
        "m x l x L x 4 x r: in float32",
        m=micro_batches,
        l=layers,
        L=gathered,
        r=ring,
    )
    held = local_count(model, degrees)
    add(
        "gradients between replicas",
        2 * held * FLOAT * _ring(degrees.replicate),
        "2 x P x 4 x r: an all-reduce of this rank's shard",
        P=held,
        r=_ring(degrees.replicate),
    )
    add(
        "tokens to experts",
        micro_batches * again * 2 * layers * model.experts_per_token * tokens / degrees.tensor * d * c * _ring(degrees.expert),
        "m x n x 2 x l x K x T x D x c x r: there and back, n times for forward, backward and recomputation",
        m=micro_batches,
        n=again,
        l=layers,
        K=model.experts_per_token,
        T=tokens / degrees.tensor,
        D=d,
        c=c,
        r=_ring(degrees.expert),
    )
    add(
        "tensor parallel",
        micro_batches * again * 4 * layers * tokens * d * c * _ring(degrees.tensor),
        "m x n x 4 x l x T x D x c x r: two gathers and two scatters of a layer's tokens",
        m=micro_batches,
        n=again,
        l=layers,
        T=tokens,
        D=d,
        c=c,
        r=_ring(degrees.tensor),
    )
    add(
        "pipeline",
        micro_batches * 2 * tokens * d * c * (degrees.pipeline > 1),
        "m x 2 x T x D x c: activations on, gradients back",
        m=micro_batches,
        T=tokens,
        D=d,
        c=c,
    )
    return tuple(found)


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks


def kv_bytes_per_token(model: Dimensions) -> int:
    """The cache of one token in bfloat16, of the layers with full attention."""
    return 2 * 2 * model.keys * model.full_layers


def state_bytes_per_sequence(model: Dimensions) -> int:
    """What the recurrent layers keep of a sequence, however long: the state in float32, the convolutions' last inputs."""
    delta = model.linear_attention
    if delta is None:
        return 0
    state = FLOAT * delta.value_heads * delta.key_head_dim * delta.value_head_dim
    return model.linear_layers * (state + 2 * delta.conv_kernel * (2 * delta.keys + delta.values))
