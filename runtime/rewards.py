"""The reward of an episode: small functions of what happened, weighted and added up as the spec says.

The terms follow Agents-A1 (arXiv 2606.30616), reward of the search teacher: correctness, format, an efficiency penalty that is
free for the first calls and then linear, and a capped penalty on repeated calls within a sliding window. The spec has the weights.
What it does not do: decide whether the outcome is right or the steps are; the world or the judge did.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..specs.reward import Efficiency, Repetition, Reward
from .worlds.protocol import Message, Step

Called = tuple[str, str]  # name and arguments of a tool call, as they were written


def compose_reward(
    reward: Reward, *, actions: Sequence[Message], steps: Sequence[Step], outcome: float, process: float, cut_off_turns: int
) -> float:
    """The weighted sum of the terms.

    Args:
        reward: the weight of each.
        actions: the assistant's messages, which hold the calls.
        steps: what the world recorded.
        outcome: whether the answer is right, 0 to 1.
        process: how right the steps are, 0 to 1.
        cut_off_turns: turns that a limit cut off before the world could read them; they count as unreadable.
    """
    calls = calls_of(actions)
    total = reward.outcome * outcome
    if reward.format:
        total += reward.format * readable_share(steps, cut_off_turns)
    if reward.steps:
        total += reward.steps * process
    if reward.efficiency:
        total += efficiency_penalty(reward.efficiency, len(calls))
    if reward.repetition:
        total += repetition_penalty(reward.repetition, calls)
    return total


def outcome_alone(reward: Reward) -> Reward:
    """The same, for whoever reads nothing but the outcome: a judge is not asked about the steps."""
    return replace(reward, steps_by="world", rubric=())


def calls_of(actions: Sequence[Message]) -> list[Called]:
    """The tool calls of the assistant's messages, in order."""
    return [
        (call["function"]["name"], call["function"]["arguments"]) for action in actions for call in action.get("tool_calls") or ()
    ]


def readable_share(steps: Sequence[Step], cut_off_turns: int) -> float:
    """The share of the actions that the world could read; 0 where there were none."""
    return sum(step.readable for step in steps) / max(1, len(steps) + cut_off_turns)


def process_score(steps: Sequence[Step]) -> float:
    """The mean of the step verifiers' outcomes; 0 where none applied, because no step was seen to be right."""
    verdicts = [step.verdict for step in steps if step.verdict is not None]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


def efficiency_penalty(efficiency: Efficiency, num_calls: int) -> float:
    """Zero for the free calls, then linear in their number."""
    return efficiency.weight * max(0, num_calls - efficiency.free_calls)


def repetition_penalty(repetition: Repetition, calls: Sequence[Called]) -> float:
    """For every call that equals one of the `window` calls before it, up to `cap` of them."""
    repeated = sum(call in calls[max(0, place - repetition.window) : place] for place, call in enumerate(calls))
    return repetition.weight * (repeated if repetition.cap is None else min(repeated, repetition.cap))
