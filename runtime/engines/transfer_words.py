"""What vLLM's transfer engines tell each other of weights, in JSON: on its way to a copy of the engine by whatever carries it."""

from collections.abc import Mapping
from typing import Any

import torch

CLASSES = {"Tensor": torch.Tensor, "TypedStorage": torch.TypedStorage, "UntypedStorage": torch.UntypedStorage}


def encoded(value: Any) -> Any:
    """What vLLM tells its workers, in JSON: handles of CUDA memory hold bytes, tuples and a few names of torch."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return {"bytes": value.hex()}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case tuple():
            return {"tuple": [encoded(one) for one in value]}
        case list():
            return [encoded(one) for one in value]
        case Mapping():
            return {"map": {name: encoded(one) for name, one in value.items()}}
        case type() if CLASSES.get(value.__name__) is value:
            return {"class": value.__name__}
    raise TypeError(f"vLLM tells its workers a {type(value).__name__}, which is not known here")


def decoded(value: Any) -> Any:
    """What `encoded` was made of."""
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "bytes":
            return bytes.fromhex(content)
        case "dtype":
            found = getattr(torch, content)
            assert isinstance(found, torch.dtype)
            return found
        case "tuple":
            return tuple(decoded(one) for one in content)
        case "map":
            return {name: decoded(one) for name, one in content.items()}
        case "class":
            return CLASSES[content]
    raise ValueError(f"`{kind}` is no kind of value")
