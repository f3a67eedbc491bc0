"""Bytes on the fullest rank of a training job, by category."""

from dataclasses import dataclass

from ...specs.families import Dimensions
from .activations import FLOAT, Formats, cast_experts, largest_layer, saved_by_layers
from .degrees import Degrees
from .parameters import gathered_layer, local_count, total
from .quantity import Quantity

PIECE_BYTES = {True: 256 << 20, False: 4 << 20}  # of losses/subset.py, on a GPU or not
LOGIT_BYTES = {True: 256 << 20, False: 64 << 20}  # of losses/vocabulary.py
USABLE = 0.9  # share of a device's memory that tensors may fill; the rest is for the context, NCCL and fragmentation (ours)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What one forward and backward pass of a rank holds."""

    rows: int  # at once
    sequence_tokens: int
    formats: Formats
    trained_share: float = 1.0  # share of the positions with a loss
    head_tokens: int | None = None  # positions whose logits exist at once; None for all of a pass
    top_k: int = 0  # of distillation's support; its loss reads hidden states and rows of the head, and makes no logits
    teacher_values: int = 0  # that a loss of distillation holds for a token beside those of a support
    whole_vocabulary: bool = False  # whether that loss makes the logits of the whole vocabulary, some tokens at a time
    embedded_copies: int = 0  # of the whole model that engines inside the trainer keep on every rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """The categories of a rank's memory. They add up to what a device must hold at its worst moment."""

    parameters: Quantity
    gradients: Quantity
    optimizer: Quantity
    buffers: Quantity
    gathered: Quantity
    activations: Quantity
    recomputed: Quantity
    logits: Quantity
    batch: Quantity
    engines: Quantity

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """All categories in order."""
        return (
            self.parameters,
            self.gradients,
            self.optimizer,
            self.buffers,
            self.gathered,
            self.activations,
            self.recomputed,
            self.logits,
            self.batch,
            self.engines,
        )

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(one.value for one in self.quantities)


def memory(model: Dimensions, degrees: Degrees, load: Load) -> Memory:
    """The memory of one rank. Weights, gradients and AdamW's two moments are float32."""
    held = local_count(model, degrees)
    tokens = load.rows * load.sequence_tokens // degrees.context
    return Memory(
        parameters=_fixed("parameters", held, 1, "this rank's shard in float32"),
        gradients=_fixed("gradients", held, 1, "one for each parameter, in float32"),
        optimizer=_fixed("optimizer", held, 2, "AdamW's two moments in float32"),
        buffers=_buffers(model, load.sequence_tokens),
        gathered=_gathered(model, degrees, load.formats),
        activations=_activations(model, degrees, load, tokens),
        recomputed=_recomputed(model, degrees, load, tokens),
        logits=_logits(model, degrees, load, tokens),
        batch=_batch(load, tokens),
        engines=_engines(model, load),
    )


def _fixed(name: str, held: int, times: int, why: str) -> Quantity:
    formula = f"{FLOAT * times} bytes x P: {why}"
    return Quantity(name=name, value=FLOAT * times * held, unit="bytes", formula=formula, inputs={"P": held})


def _buffers(model: Dimensions, sequence_tokens: int) -> Quantity:
    """Every layer of full attention keeps its own table of cosines and sines, as long as a row."""
    width = model.rotated
    value = 2 * FLOAT * width * sequence_tokens * model.full_layers
    return Quantity(
        name="buffers",
        value=value,
        unit="bytes",
        formula="8 bytes x H x L x A: cosines and sines of L positions in A layers of full attention",
        inputs={"H": width, "L": sequence_tokens, "A": model.full_layers},
    )


def _gathered(model: Dimensions, degrees: Degrees, formats: Formats) -> Quantity:
    """FSDP gathers a layer while it prefetches the next; the backward pass holds a layer's gradients in both formats."""
    layer = gathered_layer(model, degrees)
    output = (model.vocabulary or 0) * model.hidden // degrees.tensor
    c = formats.compute
    return Quantity(
        name="gathered layers",
        value=2 * c * layer + (c + FLOAT) * layer + c * output,
        unit="bytes",
        formula="(3 c + 4) x L + c x O: two gathered layers, one layer's gradients before they are reduced, the output layer",
        inputs={"c": c, "L": layer, "O": output},
    )


def _activations(model: Dimensions, degrees: Degrees, load: Load, tokens: int) -> Quantity:
    """Saved tensors of all layers, of the last norm, and the experts' casts."""
    formats = load.formats
    per_token = saved_by_layers(model, formats, degrees)
    in_flight = degrees.pipeline  # a stage of 1F1B holds as many micro-batches as there are stages behind it, at most
    last = (2 * FLOAT + formats.compute) * model.hidden
    layers = model.layers // degrees.pipeline if formats.checkpointing == "none" else 0
    casts = layers * cast_experts(model, formats, degrees)
    return Quantity(
        name="activations",
        value=tokens * (per_token * in_flight + last) + casts,
        unit="bytes",
        formula=f"T x (a x m + n) + x: {_KEPT[formats.checkpointing]}, with the last norm and the experts' bfloat16 copies",
        inputs={"T": tokens, "a": per_token, "m": in_flight, "n": last, "x": casts},
    )


_KEPT = {
    "none": "every tensor that the backward pass reads",
    "selective": "each layer's input and the products that are not computed again",
    "full": "each layer's input",
}


def _recomputed(model: Dimensions, degrees: Degrees, load: Load, tokens: int) -> Quantity:
    """While one layer is computed again, all that its backward pass reads is there; its gradients take as much again at most."""
    kept = load.formats.checkpointing == "none"
    again = 0.0 if kept else largest_layer(model, load.formats, degrees)
    casts = 0 if kept else cast_experts(model, load.formats, degrees)
    gradients = load.formats.compute * 4 * model.hidden
    return Quantity(
        name="one layer's backward pass",
        value=tokens * (again + gradients) + casts,
        unit="bytes",
        formula="T x (r + g) + x: what one layer saves when it is computed again, gradients of four tensors of the model's width, "
        "the experts' bfloat16 copies",
        inputs={"T": tokens, "r": again, "g": gradients, "x": casts},
    )


def _logits(model: Dimensions, degrees: Degrees, load: Load, tokens: int) -> Quantity:
    """The head's output, and the loss's float32 copy and gradient of the positions that are trained."""
    if load.whole_vocabulary:
        return _logits_by_piece(model, degrees, load, tokens)
    if load.top_k:
        return _without_logits(model, degrees, load, tokens)
    at_once = tokens if load.head_tokens is None else min(tokens, load.head_tokens)
    vocabulary = (model.vocabulary or 0) / degrees.tensor
    trained = at_once * load.trained_share
    return Quantity(
        name="logits",
        value=vocabulary * (2 * load.formats.compute * at_once + 2 * FLOAT * trained),
        unit="bytes",
        formula="V x (2 c x S + 8 x N): logits of S positions and their gradient; of the N trained ones, both in float32",
        inputs={"V": vocabulary, "c": load.formats.compute, "S": at_once, "N": trained},
    )


def _without_logits(model: Dimensions, degrees: Degrees, load: Load, tokens: int) -> Quantity:
    """Distillation (losses/subset.py): hidden states of the trained positions with their gradient, five values for
    each of k tokens, pieces that are computed one by one, and the head's gradient, which is dense."""
    trained, c = tokens * load.trained_share, load.formats.compute
    head = c * (model.vocabulary or 0) * model.hidden / degrees.tensor
    piece = PIECE_BYTES[load.formats.fused_norms]
    return Quantity(
        name="loss without logits",
        value=trained * (2 * c * model.hidden + 5 * FLOAT * load.top_k) + piece + head,
        unit="bytes",
        formula="N x (2 c x D + 20 k) + g + h: hidden states of N positions, their k tokens, pieces of g bytes, the head's "
        "gradient; no logits",
        inputs={"N": trained, "c": c, "D": model.hidden, "k": load.top_k, "g": piece, "h": head},
    )


def _logits_by_piece(model: Dimensions, degrees: Degrees, load: Load, tokens: int) -> Quantity:
    """Distillation (losses/vocabulary.py): hidden states of the trained positions with their gradient, a teacher's values, the
    logits of some tokens with what is computed of them, and the head's rows and gradient, which is summed in float32."""
    trained, c = tokens * load.trained_share, load.formats.compute
    numbers = (model.vocabulary or 0) * model.hidden / degrees.tensor
    piece = LOGIT_BYTES[load.formats.fused_norms]
    each = 2 * c * model.hidden + 12 * load.top_k + FLOAT * load.teacher_values
    return Quantity(
        name="logits of some tokens",
        value=trained * each + 5 * piece + numbers * (2 * c + FLOAT),
        unit="bytes",
        formula="N x (2 c x D + 12 k + 4 q) + 5 g + W x (2 c + 4): hidden states of N positions, k ids with scores, q more scores "
        "for each, logits in pieces of g bytes with four more of their size, the head's W numbers, their gradient and its sum",
        inputs={
            "N": trained,
            "c": c,
            "D": model.hidden,
            "k": load.top_k,
            "q": load.teacher_values,
            "g": piece,
            "W": numbers,
        },
    )


def _batch(load: Load, tokens: int) -> Quantity:
    """Ids, labels, positions, documents (int64), the weight, and of distillation a teacher's ids and scores."""
    per_token = 4 * 8 + FLOAT + load.top_k * (8 + FLOAT) + load.teacher_values * FLOAT
    return Quantity(
        name="batch",
        value=tokens * per_token,
        unit="bytes",
        formula="T x (36 + 12 k + 4 q): ids, labels, positions, documents and weight; a teacher's k ids with scores, q more scores",
        inputs={"T": tokens, "k": load.top_k, "q": load.teacher_values},
    )


def _engines(model: Dimensions, load: Load) -> Quantity:
    """Engines inside the trainer hold whole models in the compute format. Their caches are freed before the training step."""
    return Quantity(
        name="embedded engines",
        value=load.embedded_copies * total(model) * load.formats.compute,
        unit="bytes",
        formula="n x P x c: n whole models in the compute format",
        inputs={"n": load.embedded_copies, "P": total(model), "c": load.formats.compute},
    )
