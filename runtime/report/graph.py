"""The job graph as inline SVG: one column per distance from the start, evaluations drawn as one node."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..launch.progress import duration
from .charts import svg
from .facts import RunFacts
from .markup import Child, Markup, tag

NODE_WIDTH, NODE_HEIGHT, COLUMN_GAP, ROW_GAP = 148, 46, 44, 16
MOST_LETTERS = 18  # that a box holds
SCOREBOARD = "scoreboard"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One box."""

    name: str
    kind: str
    state: str
    note: str
    needs: tuple[str, ...]


def job_graph(facts: RunFacts) -> Markup:
    """The picture of a run's jobs and what each waits for."""
    nodes = _nodes(facts)
    columns = _columns(nodes)
    shown = _direct_needs(nodes)
    tallest = max(len(column) for column in columns)
    height = tallest * (NODE_HEIGHT + ROW_GAP) + ROW_GAP
    width = len(columns) * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP + 8
    places: dict[str, tuple[float, float]] = {}
    for across, column in enumerate(columns):
        start = (height - len(column) * (NODE_HEIGHT + ROW_GAP) + ROW_GAP) / 2
        for down, name in enumerate(column):
            places[name] = (4 + across * (NODE_WIDTH + COLUMN_GAP), start + down * (NODE_HEIGHT + ROW_GAP))
    marks: list[Child] = [_edge(places[need], places[name]) for name, needs in shown.items() for need in needs]
    marks += [_box(nodes[name], *place) for name, place in places.items()]
    finished = sum(node.state == "finished" for node in nodes.values())
    return svg(width, height, "Job graph", f"{len(nodes)} jobs, {finished} of them finished, from left to right.", marks)


def _nodes(facts: RunFacts) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    evaluations = [one for one in facts.jobs.values() if one.job.kind == "evaluate"]
    for one in facts.jobs.values():
        if one.job.kind != "evaluate":
            note = duration(one.seconds) if one.seconds is not None else ("finished" if one.finished else "waiting")
            state = "finished" if one.finished else ("started" if one.metrics else "waiting")
            nodes[one.job.id] = Node(name=one.job.id, kind=one.job.kind, state=state, note=note, needs=one.job.needs)
    if evaluations:
        done = sum(one.finished for one in evaluations)
        needs = tuple(dict.fromkeys(need for one in evaluations for need in one.job.needs if need in nodes))
        state = "finished" if done == len(evaluations) else "waiting"
        note = f"{done} of {len(evaluations)} models"
        nodes[SCOREBOARD] = Node(name=SCOREBOARD, kind="evaluate", state=state, note=note, needs=needs)
    return nodes


def _columns(nodes: Mapping[str, Node]) -> list[list[str]]:
    """Names by their longest way from the start. The plan's order is one in which jobs can run, so one pass is enough."""
    depth: dict[str, int] = {}
    for name, node in nodes.items():
        depth[name] = 1 + max((depth[need] for need in node.needs), default=-1)
    if SCOREBOARD in depth:
        depth[SCOREBOARD] = max(depth.values()) if len(depth) > 1 else 0
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, column in depth.items():
        columns[column].append(name)
    return columns


def _direct_needs(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """Needs that no other need already implies; the rest would only tangle the picture."""
    above: dict[str, set[str]] = {}
    for name, node in nodes.items():
        above[name] = set(node.needs).union(*(above[need] for need in node.needs))
    return {
        name: [need for need in node.needs if not any(need in above[other] for other in node.needs)] for name, node in nodes.items()
    }


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x1, y1 = start[0] + NODE_WIDTH, start[1] + NODE_HEIGHT / 2
    x2, y2 = end[0], end[1] + NODE_HEIGHT / 2
    bend = min(40.0, (x2 - x1) / 2)
    return tag("path", d=f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}", class_="edge")


def _box(node: Node, x: float, y: float) -> Markup:
    name = node.name.removeprefix("teachers.")
    label = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
    stage = "teacher" if node.name.startswith("teachers.") else node.kind
    return tag(
        "g",
        tag("title", f"{node.name}: {node.kind}, {node.state}, {node.note}"),
        tag("rect", x=x, y=y, width=NODE_WIDTH, height=NODE_HEIGHT, rx=8, class_=f"node k-{stage} s-{node.state}"),
        tag("text", label, x=x + 10, y=y + 19, class_="node-name"),
        tag("text", f"{node.kind} · {node.note}", x=x + 10, y=y + 35, class_="node-note"),
    )
