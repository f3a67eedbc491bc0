"""Checkpoints that verify or are refused. Importing the package prepares torchtitan's import."""

from ..trainer import bootstrap as bootstrap
