"""The forced answer: how an episode ends that reaches a limit before its policy has answered.

Source: Agents-A1 (arXiv 2606.30616), search data: at the turn cap one turn is rolled back, and a user's message forces an answer.
Rollouts and self-play share the rule: a call in the turn that reaches the cap, or in place of the answer, is never carried out. So
nothing of the turn that is rolled back stays behind in the world, and a trajectory shows every call that its world has seen.
What it does not do: roll back. Token ids and messages belong to whoever plays.
"""

from dataclasses import dataclass

from .worlds.protocol import Message


@dataclass(kw_only=True)
class Finalisation:
    """The forced answer of one episode, which is asked for once."""

    prompt: str
    asked: bool = False

    def refuses(self, action: Message, *, at_cap: bool) -> bool:
        """Whether an action is not carried out: a call, where nothing but an answer can follow."""
        return bool(action.get("tool_calls")) and (at_cap or self.asked)

    def ask(self) -> Message:
        """The user's message that asks for the answer."""
        self.asked = True
        return {"role": "user", "content": self.prompt}
