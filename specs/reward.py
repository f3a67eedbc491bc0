"""The part of the language that says how an episode is rewarded.

Source: method.md section 5 of the Agents-A1 report (arXiv 2606.30616); it names the terms and states none of their constants.
"""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from dataclasses import dataclass
from typing import Literal

from .fields import spec_field


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """A penalty on tool calls beyond a free number."""

    weight: float = spec_field(
        "Added per call beyond the free ones; negative to punish.", maximum=0, limit_reason="a penalty is negative, such as -0.1"
    )
    free_calls: int = spec_field("Calls that cost nothing.", minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """A penalty on a call that repeats one of the last few."""

    weight: float = spec_field(
        "Added per repeated call; negative to punish.", maximum=0, limit_reason="a penalty is negative, such as -0.1"
    )
    window: int = spec_field("How many earlier calls count.", unit="calls", minimum=1)
    cap: int | None = spec_field(
        "Most repeated calls of an episode that are punished; left out, all of them.", default=None, unit="calls", minimum=1
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """The reward of an episode, composed of the world's verifiers. Terms add up."""

    outcome: float = spec_field("Weight of the outcome verifier (0 or 1).", default=1.0)
    format: float = spec_field("Weight of the share of turns whose action the world could read.", default=0.0)
    steps: float = spec_field("Weight of the mean of the step verifiers.", default=0.0)
    outcome_by: Literal["world", "judge"] = spec_field(
        "Who says whether the outcome is right: the world's verifier, or `engines.judge`.", default="world"
    )
    steps_by: Literal["world", "judge"] = spec_field(
        "Who scores the steps: the world's step verifiers, or `engines.judge` by a rubric.", default="world"
    )
    rubric: tuple[str, ...] = spec_field(
        "What `steps_by: judge` asks of an episode, one statement an item; the score is the share that hold.", default=()
    )
    efficiency: Efficiency | None = spec_field("Penalty on many tool calls.", default=None)
    repetition: Repetition | None = spec_field("Penalty on repeated tool calls.", default=None)
