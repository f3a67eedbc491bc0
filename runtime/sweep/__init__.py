"""Sweeps: rows of variants over seeds, run one after the other or side by side, and measured by the first row."""
