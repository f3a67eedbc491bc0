"""The fixture of the stages that need no trainer."""

from stage_contexts import make_context

__all__ = ["make_context"]
