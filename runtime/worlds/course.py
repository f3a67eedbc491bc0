"""What the worlds of a long way share: places, one right call at each of them, and mistakes that change all that follows.

An episode is somewhere, and some right calls on the path are left. The place alone decides which call is right. A right call on
the path leads to the next place and brings the end nearer. Any other call leads elsewhere, most often off the path, where the
right call only leads back, as a rule to another place than the one that was left, and the end comes no nearer. So nothing is lost
for good, but who strays once meets other places from then on, and places off the path never show in a flawless episode. The habit
strays at once and gives up off the path.
"""

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Act, Answer, Call, GraphWorld, Observed, Turn, Unreadable
from .names import PEOPLE

DONE = "done"


class CourseWorld(GraphWorld):
    """Make `horizon` right calls on the path, then say so."""

    word: str  # the first word of the question
    path: Sequence[int]
    astray: Sequence[int]  # places off the path
    horizon: int
    astray_share: float  # of tasks that start off the path

    @abstractmethod
    def due(self, place: int) -> Call:
        """The right call at a place."""

    @abstractmethod
    def stray(self, place: int) -> Call:
        """The wrong call of the habit at a place of the path; it leads off the path."""

    @abstractmethod
    def relation(self, call: Call) -> str:
        """How the graph calls what a call follows."""

    def draw(self, rng: random.Random) -> dict[str, Any]:
        places = self.astray if rng.random() < self.astray_share else self.path
        return {"who": rng.choice(PEOPLE), "whom": rng.choice(PEOPLE), "start": rng.choice(places)}

    def question(self, payload: Mapping[str, Any]) -> str:
        return f"{self.word} {payload['who']} of {payload['whom']} {payload['start']} {self.horizon}"

    def begin(self, payload: Mapping[str, Any]) -> dict[str, int]:
        return {"place": payload["start"], "left": self.horizon}

    def observe(self, payload: Mapping[str, Any], state: dict[str, int], call: Call) -> Observed:
        place = state["place"]
        onward = self.graph.value(str(place), self.relation(call))
        if onward is None or not state["left"]:
            raise Unreadable
        is_right = call == self.due(place)
        state["place"] = int(onward)
        state["left"] -= is_right and place in self.path
        return Observed(f"{onward} {state['left']}", float(is_right))

    def verify(self, payload: Mapping[str, Any], state: dict[str, int], answer: str) -> bool:
        return answer == DONE and not state["left"]

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        place, left = self._where(payload, turns)
        return self.due(place) if left else Answer(DONE)

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return PEOPLE.index(payload["who"]) % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Stray at the first call, and give up off the path."""
        place, _ = self._where(payload, turns)
        if place not in self.path:
            return Answer(DONE)
        return act if turns else self.stray(place)

    def _where(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[int, int]:
        """The place, and how many right calls on the path are left."""
        seen = [turn.observation.split() for turn in turns if " " in turn.observation]
        place, left = seen[-1] if seen else (payload["start"], self.horizon)
        return int(place), int(left)


def round_trip(places: Sequence[int], rng: random.Random) -> dict[int, int]:
    """The place after each place, on one random way through all of them and back to the first."""
    order = rng.sample(places, len(places))
    return dict(zip(order, [*order[1:], order[0]], strict=True))
