"""Checkpoints that verify or are refused."""
