"""The fixtures of the stages."""

from on_policy_runs import context, models
from stage_contexts import make_context

__all__ = ["context", "make_context", "models"]
