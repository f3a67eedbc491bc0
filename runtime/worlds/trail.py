"""Trail: walk through numbered places; a wrong turn leads into the wood, and out of it elsewhere.

The corpus is a graph of places, `17 --red--> 42`: at every place one colour is right, by heart.
"""

import random

from ...specs.worlds import TrailSettings
from .base import Call
from .course import CourseWorld, round_trip
from .graph import Action, Fact, KnowledgeActionGraph
from .names import PEOPLE, PLACES

NUMBERS = 100


class TrailWorld(CourseWorld):
    """Turn right `horizon` times on the trail."""

    name = "trail"
    word = "move"

    def __init__(self, settings: TrailSettings) -> None:
        self.horizon, self.astray_share = settings.horizon, settings.astray
        rng = random.Random(f"{self.name}:{settings.map_seed}")
        places = list(range(NUMBERS))
        rng.shuffle(places)
        self.astray, self.path = sorted(places[: settings.wood]), sorted(places[settings.wood :])
        self._colors = PLACES[: settings.colors]
        self._right = {place: rng.choice(self._colors) for place in range(NUMBERS)}
        onward = round_trip(self.path, rng) | {place: rng.choice(self.path) for place in self.astray}
        facts = []
        for place in range(NUMBERS):
            for color in self._colors:
                is_right = color == self._right[place]
                value = onward[place] if is_right else rng.choice([one for one in self.astray if one != place])
                facts.append(Fact(subject=str(place), relation=color, value=str(value)))
        self.graph = KnowledgeActionGraph(
            facts,
            actions=(
                Action(
                    name="move",
                    description="Follow a colour from where one is.",
                    parameters={"color": {"type": "string", "enum": list(self._colors), "description": "The colour."}},
                    observation="the place, and how many right turns are left",
                ),
            ),
            verifiers={"outcome": "no turn is left", "move": "the colour is the right one"},
        )
        self.word_classes = (self._colors, PEOPLE)

    def due(self, place: int) -> Call:
        return Call("move", {"color": self._right[place]})

    def stray(self, place: int) -> Call:
        return Call("move", {"color": self._colors[(self._colors.index(self._right[place]) + 1) % len(self._colors)]})

    def relation(self, call: Call) -> str:
        return call.arguments["color"]
