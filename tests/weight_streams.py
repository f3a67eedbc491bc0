"""Weights as a trainer hands them to an engine, of models and folders."""

from pathlib import Path

from polymath.runtime.engines.weights import Weights
from safetensors.torch import load_file
from torch import Tensor, nn


def weights_of(model: nn.Module) -> Weights:
    """Those of one of transformers' models, tied ones once."""
    return Weights([{name: parameter} for name, parameter in model.named_parameters()])


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All that `write_weights` left in a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
