"""What an engine with devices of its own holds: one copy of the weights on some devices, and the cache of running sequences."""

from dataclasses import dataclass

from ...specs.families import Dimensions
from ...specs.hardware import Accelerator
from .compute import kv_bytes_per_token, state_bytes_per_sequence
from .memory import USABLE
from .parameters import count_by_component, total
from .quantity import GIB, Quantity

WEIGHT_BYTES = 2  # engines serve in bfloat16
LARGEST_COPY = 8  # devices; a copy stays within a machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """The memory of one device of an engine."""

    weights: Quantity
    cache: Quantity  # of one sequence of full length
    sequences: int | None  # of full length that fit beside the weights at once; None where the memory is not known


def serving(model: Dimensions, accelerator: Accelerator, tensor: int, context_tokens: int) -> Serving:
    """A copy of a text model on `tensor` devices; the vision tower stays out."""
    served = total(model) - count_by_component(model).get("vision", 0)
    weights = served * WEIGHT_BYTES / tensor
    key_values, state = kv_bytes_per_token(model), state_bytes_per_sequence(model)
    split = min(tensor, model.kv_heads)  # heads are not cut: with more devices than heads, several hold the same
    each = key_values * context_tokens / split + state / tensor
    room = None if accelerator.memory_gib is None else accelerator.memory_gib * GIB * USABLE - weights
    return Serving(
        weights=Quantity(
            name="weights of the engine",
            value=weights,
            unit="bytes",
            formula="2 x P / t: bfloat16, over the devices of a copy",
            inputs={"P": served, "t": tensor},
        ),
        cache=Quantity(
            name="KV cache of a sequence",
            value=each,
            unit="bytes",
            formula="v x L / s + z / t: v bytes for a token's keys and values in bfloat16, z for recurrent states",
            inputs={"v": key_values, "L": context_tokens, "s": split, "z": state, "t": tensor},
        ),
        sequences=None if room is None else max(0, int(room // each)),
    )


def smallest_copy(model: Dimensions, accelerator: Accelerator, devices: int, context_tokens: int) -> int | None:
    """The fewest devices that hold a copy with one sequence of full length; None where no number does."""
    sizes = [2**power for power in range(LARGEST_COPY.bit_length()) if devices % 2**power == 0 and model.heads % 2**power == 0]
    for size in sizes:
        if serving(model, accelerator, size, context_tokens).sequences != 0:
            return size
    return None
