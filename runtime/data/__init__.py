"""Tokens, trajectories and packed batches."""
