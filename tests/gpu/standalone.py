"""Makes this repository importable as `polymath` without installing it, and says what of a GPU machine is missing.

The GPU scripts must run on a bare machine: a checkout, torch, and whatever of Transformer Engine was brought along.
"""

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]


def find_polymath() -> None:
    """Let `import polymath` find the source folders, where the package is not installed."""
    if importlib.util.find_spec("polymath") is None:
        package = types.ModuleType("polymath")
        package.__path__ = [str(ROOT)]
        sys.modules["polymath"] = package


def lacks(*modules: str) -> str | None:
    """Which of these modules cannot be found, in words."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def machine() -> dict[str, str]:
    """What figures were measured on."""
    import torch

    found = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda), "device": "cpu"}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
        found["compute capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
    for name, module in (("transformer_engine", "transformer-engine"), ("triton", "triton")):
        missing = lacks(name)
        found[module] = missing or importlib.metadata.version(module)
    return found
