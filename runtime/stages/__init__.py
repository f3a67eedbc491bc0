"""Stages: one file each, read top to bottom as the algorithm."""
