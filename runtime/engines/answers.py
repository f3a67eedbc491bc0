"""What every answer of an engine elsewhere must be before anything is made of it, however it came: ids that the model has, and
log-probabilities that are finite numbers of at most 0, as many as were asked for.

Shapes: P positions of all sequences of a call, J tokens named at a position.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .endpoint import Unreadable
from .protocol import Generation

ROUNDING = 1e-3  # a probability of 1 may come out a little above it


def sound_logprobs(values: list[Any]) -> list[float]:
    """The values, which must be finite numbers of at most 0.

    Raises:
        Unreadable: one of them is not.
    """
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > ROUNDING:
            raise Unreadable(f"a log-probability that is no finite number of at most 0: {value!r}")
    return values


def unsound_logprobs(logprobs: Tensor) -> Tensor:
    """Those of them that are no finite numbers of at most 0."""
    return logprobs[~(logprobs.isfinite() & (logprobs <= ROUNDING))]


def require_ids(ids: Sequence[Any], vocabulary: int) -> None:
    """Raises Unreadable where one of them is no id of the model's."""
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < vocabulary:
            raise Unreadable(f"{one!r} is none of the model's {vocabulary} ids")


def continuation(
    ids: list[Any], logprobs: list[Any], *, stopped: bool, limit: int, stop_ids: Sequence[int], vocabulary: int
) -> Generation:
    """What an engine wrote.

    Raises:
        Unreadable: it is no continuation of at most `limit` tokens that ended as it says.
    """
    require_ids(ids, vocabulary)
    sound_logprobs(logprobs)
    if not 1 <= len(ids) <= limit or len(logprobs) != len(ids) or stopped != (ids[-1] in stop_ids):
        ended = "stopped" if stopped else "cut off"
        raise Unreadable(f"a continuation of {len(ids)} ids and {len(logprobs)} log-probabilities, {ended}, limit {limit}")
    return Generation(ids=tuple(ids), logprobs=tuple(logprobs), stopped=stopped)


def require_scores(ids_PJ: Tensor, logprobs_PJ: Tensor, own_P: Tensor, columns: int, vocabulary: int) -> None:
    """Refuse scores that are not of the tokens that stand there.

    Args:
        ids_PJ: the first column is the sequence's own token.
        own_P: that token.
        columns: that were asked for.

    Raises:
        Unreadable: they are of other positions or of another form.
    """
    shape = (len(own_P), columns)
    if ids_PJ.shape != shape or logprobs_PJ.shape != shape:
        raise Unreadable(f"scores of shape {tuple(ids_PJ.shape)} and {tuple(logprobs_PJ.shape)}, and {shape} were asked for")
    outside = ids_PJ[(ids_PJ < 0) | (ids_PJ >= vocabulary)]
    if outside.numel():
        raise Unreadable(f"{outside[0].item()} is none of the model's {vocabulary} ids")
    if not torch.equal(ids_PJ[:, 0], own_P):
        raise Unreadable("the scores are not of the tokens that stand there")
    unsound = unsound_logprobs(logprobs_PJ)
    if unsound.numel():
        raise Unreadable(f"a log-probability that is no finite number of at most 0: {unsound[0].item()}")


def require_tensors(tensors: Mapping[str, Tensor], **expected: tuple[torch.dtype, int]) -> None:
    """Refuse tensors of other names, formats or numbers of dimensions.

    Raises:
        Unreadable: with what came and what was expected.
    """
    found = {name: (tensor.dtype, tensor.dim()) for name, tensor in tensors.items()}
    if found != expected:
        raise Unreadable(f"tensors {_described(found)}, expected {_described(expected)}")


def _described(tensors: Mapping[str, tuple[torch.dtype, int]]) -> str:
    """Names, formats and dimensions, such as `ids int64 [1]`; of many the first."""
    words = [f"{name[:20]} {str(dtype).removeprefix('torch.')} [{dims}]" for name, (dtype, dims) in sorted(tensors.items())]
    return ", ".join(words[:8]) or "none"
