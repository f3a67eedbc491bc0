"""Losses: pure functions of logits and batch."""
