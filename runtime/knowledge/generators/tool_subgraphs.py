"""Tools: connected subgraphs of a tool dependency graph, anchored on a target that can be verified, with a simulated user.

A service keeps tables of resources. Getters take a field of one and return others, so that a field which a tool returns is what the
next one takes; an update changes one field. A task is a path through that graph from what the user knows to the record that has to
change. It is screened: every argument is available from the user or from an earlier tool, every call can be carried out, the final
state can be verified. The user tells what they know when asked, and thanks at the end. Of several candidates at a goal the
verifier ranks the best first. Tools that others wrote, by their documents: `documented_tools.py`.
Source: Agents-A1 report (arXiv 2606.30616), tool data.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ....specs.generators import ToolSubgraphsSettings
from ...worlds.base import Call, Unreadable
from ..graph import GraphStore
from ..importers import add_tool
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator, say, tool
from .documented_tools import DocumentedTools

# Each resource with the resource that it belongs to: a chain of dependencies from a person to a thing to change.
CHAINS = (
    ("customer", "order", "parcel", "locker"),
    ("patient", "appointment", "room", "device"),
    ("student", "course", "exam", "seat"),
    ("tenant", "flat", "meter", "contract"),
)
COLORS = ("red", "blue", "green", "white")
STATES = ("open", "closed", "held", "sent", "blocked", "renewed", "paused", "checked")
_GIVEN = [
    "ada",
    "alan",
    "bea",
    "carl",
    "dora",
    "emil",
    "fay",
    "gus",
    "hana",
    "igor",
    "jana",
    "karl",
    "lena",
    "mara",
    "nils",
    "olga",
    "pia",
    "ralf",
    "sara",
    "tom",
]
_FAMILY = [
    "abel",
    "bach",
    "cole",
    "dorn",
    "ende",
    "funk",
    "graf",
    "hahn",
    "iver",
    "jung",
    "korn",
    "lund",
    "maas",
    "noll",
    "oster",
    "pohl",
    "rast",
    "senn",
    "thal",
    "wirt",
]
DONE = "done"


class ToolSubgraphs(TaskGenerator):
    """Find the one record through others, and set its state."""

    name = "tool_subgraphs"
    ranks_candidates = True
    verifiers: Mapping[str, str] = {
        "outcome": "the record that was asked for has the state that was asked for, and nothing else changed",
        "get": "the record lies on the way",
    }
    duplicate_threshold = 1.01  # goals share their words; what sets them apart is a name

    def __init__(self, store: GraphStore, settings: ToolSubgraphsSettings) -> None:
        super().__init__(store, settings)
        self.tools = tuple(_tools())
        self._rows: dict[str, dict[str, dict[str, str]]] = {}  # by resource, then by its id
        for node in store.nodes("fact"):
            resource, _, identity = node.name.partition(" ")
            row = dict(pair.split("=", 1) for pair in node.body.split(";"))
            self._rows.setdefault(resource, {})[identity] = row | {"node": node.id}

    @classmethod
    def chosen(cls, settings: ToolSubgraphsSettings) -> type[TaskGenerator]:
        return cls if settings.documents is None else DocumentedTools

    @classmethod
    def furnish(cls, store: GraphStore, settings: ToolSubgraphsSettings) -> None:
        if next(store.nodes("fact"), None) is not None:
            return
        rng = random.Random(f"service:{settings.service_seed}")
        for schema in _tools():
            add_tool(store, schema)
        for chain in CHAINS:
            people = rng.sample([f"{given} {family}" for given in _GIVEN for family in _FAMILY], min(settings.people, 400))
            above = [f"{chain[0][:2]}{number:04d}" for number in range(len(people))]
            for identity, name in zip(above, people, strict=True):
                store.add("fact", f"{chain[0]} {identity}", f"name={name};state={rng.choice(STATES)}")
            for parent, resource in pairwise(chain):
                below = []
                for owner in above:
                    for number in range(rng.choice((1, 1, 2))):
                        identity = f"{resource[:2]}{owner[2:]}{'ab'[number]}"
                        body = f"{parent}={owner};color={rng.choice(COLORS)};state={rng.choice(STATES)}"
                        store.link("supports", store.add("fact", f"{resource} {identity}", body), store.add("entity", resource))
                        below.append(identity)
                above = below
        store.commit()

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        region = region or rng
        chain = region.choice(CHAINS)
        depth = region.randint(2, len(chain) - 1)
        person, row = region.choice([*self._rows[chain[0]].items()])
        way, colors = [person], []
        for resource in chain[1 : depth + 1]:
            found = self._children(resource, way[-1])
            if not found:
                return None
            way.append(rng.choice(found))
            colors.append(self._rows[resource][way[-1]]["color"])
        wanted = rng.choice([state for state in STATES if state != self._rows[chain[depth]][way[-1]]["state"]])
        steps = " of the ".join(f"{color} {resource}" for color, resource in reversed([*zip(colors, chain[1:], strict=False)]))
        instruction = f"Please set the {steps} of a {chain[0]} to {wanted}. Ask me for the name."
        nodes = [self._rows[resource][identity]["node"] for resource, identity in zip(chain, way, strict=False)]
        task = TaskRecord(
            instruction=instruction,
            domain=self.name,
            key=f"{instruction} {row['name']}",
            target=f"{chain[depth]} {way[-1]} {wanted}",
            evidence=tuple(nodes),
            verifiers=("outcome",),
            payload={"name": row["name"], "resources": list(chain[: depth + 1]), "colors": colors, "state": wanted},
        )
        # Screened: a person may have two things of one colour.
        return task if len(self.admissible(task)) == 1 else None

    def begin(self, task: TaskRecord) -> dict[str, str]:
        return {}  # changed records, by resource and id

    def reply(self, task: TaskRecord, state: Any, text: str) -> str | None:
        """The simulated user: tells the name when asked for it."""
        return f"The name is {task.payload['name']}." if "name" in text.lower() and "?" in text else None

    def brief(self, task: TaskRecord) -> str:
        name = task.payload["name"]
        return (
            f"You asked: {task.instruction} The name is {name}. Tell it when you are asked for it. You know nothing else: no other "
            "names and no ids."
        )

    def serve(self, task: TaskRecord, state: dict[str, str], call: Call) -> Shown:
        verb, _, resource = call.name.partition("_")
        rows = self._rows.get(resource, {})
        if verb == "set":
            identity = call.arguments["id"]
            if identity not in rows or call.arguments["state"] not in STATES:
                raise Unreadable(f"there is no such {resource}, or no such state")
            state[f"{resource} {identity}"] = call.arguments["state"]
            return Shown(f"{resource} {identity} is now {call.arguments['state']}")
        (value,) = call.arguments.values()
        key = "name" if verb == "find" else CHAIN_OF[resource]
        found = [identity for identity, row in rows.items() if row.get(key) == value]
        lines = [
            f"{identity}: " + ", ".join(f"{name} {text}" for name, text in rows[identity].items() if name != "node")
            for identity in found
        ]
        nodes = tuple(rows[identity]["node"] for identity in found)
        return Shown("\n".join(lines) or "nothing found", nodes, float(bool(set(nodes) & set(task.evidence))))

    def accepts(self, task: TaskRecord, answer: str, state: dict[str, str] | None = None) -> bool:
        resource, identity, wanted = (task.target or "  ").split(" ", 2)
        if state is None:  # the verifier's word about a target, without an episode
            return answer == task.target and identity in self._rows.get(resource, {}) and wanted in STATES
        return state == {f"{resource} {identity}": wanted}

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        """Every record that the words of the request may mean, in every state that they may ask for."""
        left = Counter(re.findall(r"\w+", task.instruction.lower()))
        here = [
            identity for identity, row in self._rows[task.payload["resources"][0]].items() if row["name"] == task.payload["name"]
        ]
        ways = []
        for color in task.payload["colors"]:
            ways.append({color} if left[color] else set(COLORS))  # what is not said may be any
            left[color] -= 1
        others = {color for color in COLORS if left[color] > 0}  # and a colour more may be meant anywhere
        for resource, colors in zip(task.payload["resources"][1:], ways, strict=True):
            children = [child for owner in here for child in self._children(resource, owner)]
            here = [child for child in children if self._rows[resource][child]["color"] in colors | others]
        states = [state for state in STATES if left[state]] or STATES
        return frozenset(f"{task.payload['resources'][-1]} {identity} {state}" for identity in here for state in states)

    def one_lookup(self, task: TaskRecord) -> str | None:
        return "the record is the person's own" if len(task.payload["resources"]) < 3 else None

    def shortcut(self, task: TaskRecord) -> str | None:
        identities = [node.name.split(" ")[1] for one in task.evidence if (node := self.store.node(one))]
        words = set(task.instruction.replace(".", " ").replace(",", " ").split())
        if named := [identity for identity in identities if identity in words]:
            return f"the request names {named[0]}"
        resource, identity, wanted = (task.target or "  ").split(" ", 2)
        if self._rows.get(resource, {}).get(identity, {}).get("state") == wanted:
            return "the record already has that state"
        return None

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        resources, colors = task.payload["resources"], task.payload["colors"]
        told = yield say(f"What is the name of the {resources[0]}?")
        shown = yield Call(f"find_{resources[0]}", {"name": told.removeprefix("The name is ").removesuffix(".")})
        here = [line.split(":")[0] for line in shown.splitlines()]
        for parent, resource, color in zip(resources, resources[1:], colors, strict=False):
            lines: list[str] = []
            for identity in here:  # several may look right until one sees what they have
                shown = yield Call(f"get_{resource}", {parent: identity})
                lines += [line for line in shown.splitlines() if f"color {color}" in line]
            here = [line.split(":")[0] for line in lines]
        if not here:
            return "There is no such record."
        yield Call(f"set_{resources[-1]}", {"id": here[0], "state": task.payload["state"]})
        return DONE

    def _children(self, resource: str, owner: str) -> list[str]:
        parent = CHAIN_OF[resource]
        return [identity for identity, row in self._rows.get(resource, {}).items() if row.get(parent) == owner]


CHAIN_OF = {resource: parent for chain in CHAINS for parent, resource in pairwise(chain)}


def _tools() -> list[dict[str, Any]]:
    found = []
    for chain in CHAINS:
        found.append(tool(f"find_{chain[0]}", f"Find a {chain[0]} by name.", name="string: First and last name."))
        for parent, resource in pairwise(chain):
            found.append(tool(f"get_{resource}", f"List what a {parent} has.", **{parent: f"string: Id of the {parent}."}))
            what = f"Set the state of a {resource}: {', '.join(STATES)}."
            found.append(tool(f"set_{resource}", what, id=f"string: Id of the {resource}.", state="string: The new state."))
    return found
