"""The reward of an episode, composed of the world's verifiers as the spec says.

The terms follow Agents-A1 (arXiv 2606.30616), reward of the search teacher: correctness, format, an efficiency penalty that is
free for the first calls, and a penalty on repeated calls within a window. The weights are the spec's.
"""

from collections.abc import Sequence

from ..specs.model import Reward
from .worlds.protocol import Message, Step


def compose_reward(
    reward: Reward, *, actions: Sequence[Message], steps: Sequence[Step], outcome: float, cut_off_turns: int
) -> float:
    """The weighted sum of the verifiers.

    Args:
        reward: the weight of each.
        actions: the assistant's messages, which hold the calls.
        steps: what the world recorded.
        outcome: of the outcome verifier, 0 to 1.
        cut_off_turns: turns that a limit cut off before the world could read them; they count as unreadable.
    """
    total = reward.outcome * outcome
    if reward.format:
        total += reward.format * sum(step.readable for step in steps) / max(1, len(steps) + cut_off_turns)
    verdicts = [step.verdict for step in steps if step.verdict is not None]
    if reward.steps and verdicts:
        total += reward.steps * sum(verdicts) / len(verdicts)
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for action in actions for call in action.get("tool_calls") or ()
    ]
    if reward.efficiency:
        total += reward.efficiency.weight * max(0, len(calls) - reward.efficiency.free_calls)
    if reward.repetition:
        window = reward.repetition.window
        total += reward.repetition.weight * sum(call in calls[max(0, index - window) : index] for index, call in enumerate(calls))
    return total
