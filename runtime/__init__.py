"""The runtime: a plan becomes a trained student."""
