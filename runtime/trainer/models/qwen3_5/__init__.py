"""Qwen3.5 MoE. Importing the package prepares the import of torchtitan's model, so no module in it need take care."""

from . import fla as fla
