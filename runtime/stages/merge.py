"""merge: the student's weights computed from SFT's and the routed teachers', without training; the baselines that people try first.

What it does: parameter averaging, or task arithmetic (Ilharco et al., "Editing models with task arithmetic", ICLR 2023), in
float32, tensor by tensor: memory holds one of SFT's files and one tensor of a teacher. Each teacher counts once, however many
domains it has.
What it does not do: align experts or neurons before it adds them; the models have one ancestor, so they mostly stand in line.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...specs.model import Merge
from ..files import published_folder
from ..jobs import JobContext
from .import_model import weight_files


def run(context: JobContext) -> None:
    """Publish the merged student. The first rank works alone."""
    result: dict[str, Any] = {}
    if context.is_first_rank:
        stage = context.setting("stage", Merge)
        sft = context.input_folder("model")
        teachers = [context.input_folder(name) for name in sorted(context.job.inputs) if name.startswith("teacher.")]
        with published_folder(context.folder / "model") as staging:
            tensors = merge_models(sft, teachers, staging, stage)
        result = {"teachers": len(teachers), "tensors": tensors}
    context.finish(result)


def merge_models(sft: Path, teachers: Sequence[Path], folder: Path, stage: Merge) -> int:
    """Write the merged model's folder, laid out as SFT's; returns how many tensors were merged.

    Raises:
        ValueError: a teacher's tensors are not those of SFT.
    """
    merged = 0
    with ExitStack() as stack:
        readers = [_Reader(teacher, stack) for teacher in teachers]
        for name in weight_files(sft):
            written: dict[str, Tensor] = {}
            with safe_open(sft / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (not a mapping)
                    written[key] = tensors.get_tensor(key)
                    if written[key].is_floating_point():  # counters and the like stay SFT's
                        written[key] = _merged(key, written[key], readers, stage)
                        merged += 1
            save_file(written, folder / name, metadata={"format": "pt"})
    for path in sft.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    return merged


class _Reader:
    """Tensors of a model folder by name, one at a time."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        opened = [stack.enter_context(safe_open(folder / name, framework="pt")) for name in weight_files(folder)]
        self._where = {key: tensors for tensors in opened for key in tensors.keys()}  # noqa: SIM118

    def read(self, key: str, like: Tensor) -> Tensor:
        """A tensor in float32, which must have the shape of SFT's."""
        found: Tensor | None = self._where[key].get_tensor(key) if key in self._where else None
        if found is None or found.shape != like.shape:
            raise ValueError(
                f"{self.folder} holds {key} as {None if found is None else tuple(found.shape)}, not {tuple(like.shape)}"
            )
        return found.float()


def _merged(key: str, sft: Tensor, readers: Sequence[_Reader], stage: Merge) -> Tensor:
    total = torch.zeros_like(sft, dtype=torch.float32)
    if stage.method == "average":
        for reader in readers:
            total += reader.read(key, sft)
        return (total / len(readers)).to(sft.dtype)
    assert stage.scale is not None
    start = sft.float()
    for reader in readers:
        total += reader.read(key, sft) - start
    return (start + stage.scale * total).to(sft.dtype)
