"""torchtitan, subclassed."""
