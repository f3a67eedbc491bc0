"""Worlds: what a model acts in."""
