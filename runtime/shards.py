"""Weights in a folder, in files of bounded size with an index, as Hugging Face's libraries write and read them."""

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .files import write_json


def write_shards(weights: Iterable[tuple[str, Tensor]], folder: Path, largest: int) -> None:
    """Write them one by one; no more is held than one file.

    Args:
        largest: bytes of a file; one of a single tensor may be larger.
    """
    weight_map: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    number, total = 1, 0

    def flush() -> None:
        nonlocal number
        path = f"model-{number:05d}.safetensors"
        save_file(pending, folder / path, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(pending, path))
        pending.clear()
        number += 1

    for name, tensor in weights:
        if pending and sum(one.nbytes for one in pending.values()) + tensor.nbytes > largest:
            flush()
        pending[name] = tensor.contiguous()
        total += tensor.nbytes
        del tensor  # before the next comes
    flush()
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
