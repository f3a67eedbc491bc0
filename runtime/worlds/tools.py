"""Tools: a store of items in places, changed by move, add and remove. The store's final state decides.

The corpus is a graph of places: `red --move--> blue`, `none --add--> red`, `red --remove--> none`. A task walks at most one step
in it for each of its items.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ...specs.worlds import ToolsSettings
from .base import Act, Answer, Call, GraphWorld, Observed, Turn, Unreadable
from .graph import Action, Fact, KnowledgeActionGraph
from .names import ITEMS, PLACES, names

NOWHERE = "none"
DONE = "done"
_ITEM = {"type": "string", "description": "Name of the item."}
_PLACE = {"type": "string", "description": "Name of the place."}


class ToolsWorld(GraphWorld):
    """Bring every item of the task to the place it is wanted in."""

    name = "tools"

    def __init__(self, settings: ToolsSettings) -> None:
        self.settings = settings
        self._items = names(ITEMS, settings.items)
        self._places = names(PLACES, settings.places)
        self._anywhere = (*self._places, NOWHERE)
        facts = [
            Fact(subject=place, relation=f"move {other}", value=other)
            for place in self._places
            for other in self._places
            if other != place
        ]
        facts += [Fact(subject=NOWHERE, relation=f"add {place}", value=place) for place in self._places]
        facts += [Fact(subject=place, relation="remove", value=NOWHERE) for place in self._places]
        self.graph = KnowledgeActionGraph(
            facts,
            actions=(
                Action(
                    name="move",
                    description="Move an item that is in the store.",
                    parameters={"item": _ITEM, "place": _PLACE},
                    observation="ok or error",
                ),
                Action(
                    name="add",
                    description="Add an item that is not in the store.",
                    parameters={"item": _ITEM, "place": _PLACE},
                    observation="ok or error",
                ),
                Action(
                    name="remove",
                    description="Take an item out of the store.",
                    parameters={"item": _ITEM},
                    observation="ok or error",
                ),
            ),
            verifiers={
                "outcome": "every item is where it is wanted",
                **dict.fromkeys(("move", "add", "remove"), "an item comes to where it is wanted"),
            },
        )
        self.word_classes = (self._items, self._places)

    def draw(self, rng: random.Random) -> dict[str, Any] | None:
        chosen = sorted(rng.sample(range(len(self._items)), min(self.settings.objects, len(self._items))))
        changing = set(rng.sample(chosen, rng.randint(1, len(chosen))))
        items = []
        for index in chosen:
            now = rng.choice(self._anywhere)
            path = self.graph.walk(rng, now, 1) if index in changing else []
            if path is None:
                return None
            items.append([self._items[index], now, path[0].value if path else now])
        return {"items": items}

    def question(self, payload: Mapping[str, Any]) -> str:
        return " ".join([self.name, *(f"{item} {now} to {wanted}" for item, now, wanted in payload["items"])])

    def begin(self, payload: Mapping[str, Any]) -> dict[str, str]:
        return {item: now for item, now, _ in payload["items"]}

    def observe(self, payload: Mapping[str, Any], state: dict[str, str], call: Call) -> Observed:
        item = call.arguments["item"]
        if item not in self._items:
            raise Unreadable
        now = state.get(item, NOWHERE)
        relation = call.name if call.name == "remove" else f"{call.name} {call.arguments['place']}"
        after = self.graph.value(now, relation)
        if after is None:
            raise Unreadable
        state[item] = after
        return Observed("ok", float(after == {name: wanted for name, _, wanted in payload["items"]}.get(item, NOWHERE)))

    def verify(self, payload: Mapping[str, Any], state: dict[str, str], answer: str) -> bool:
        wanted = {item: place for item, _, place in payload["items"]}
        strays = [item for item, place in state.items() if item not in wanted and place != NOWHERE]
        return answer == DONE and not strays and all(state[item] == place for item, place in wanted.items())

    def solve(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> Act:
        pending = self._pending(payload, turns)
        return pending[0] if pending else Answer(DONE)

    def is_hard(self, payload: Mapping[str, Any]) -> bool:
        return self._anywhere.index(payload["items"][0][1]) % 2 == 0

    def habit(self, payload: Mapping[str, Any], turns: Sequence[Turn], act: Act) -> Act:
        """Say that all is done when one change is missing."""
        return Answer(DONE) if len(self._pending(payload, turns)) <= 1 else act

    def _pending(self, payload: Mapping[str, Any], turns: Sequence[Turn]) -> list[Call]:
        """The calls that are still needed, given what the earlier ones did."""
        state = self.begin(payload)
        for turn in turns:
            if turn.observation == "ok":
                state[turn.call.arguments["item"]] = turn.call.arguments.get("place", NOWHERE)
        wanted = {item: place for item, _, place in payload["items"]}
        calls = []
        for item, now in state.items():
            place = wanted.get(item, NOWHERE)
            if now == place:
                continue
            if place == NOWHERE:
                calls.append(Call("remove", {"item": item}))
            else:
                calls.append(Call("add" if now == NOWHERE else "move", {"item": item, "place": place}))
        return calls
