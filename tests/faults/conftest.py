"""The fixtures of the fault tests."""

from on_policy_runs import context, models

__all__ = ["context", "models"]
