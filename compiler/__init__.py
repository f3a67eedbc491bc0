"""The compiler: a spec becomes a deterministic plan. Never imports torch."""
