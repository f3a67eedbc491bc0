"""Attempts in the graph: every message once, every step in the tree of its task, accepted or not, and the record back again."""

import json
from collections.abc import Iterator
from typing import Any

from .graph import GraphStore, address
from .records import TaskRecord, TrajectoryRecord, record_from_json, written_by_model


def add_task(store: GraphStore, task: TaskRecord) -> str:
    """Add a task with its edges: evidence supports it, verifiers verify it. Returns its id."""
    identity = store.add("task", task.key, json.dumps(task.as_json(), ensure_ascii=False))
    for evidence in task.evidence:
        store.link("supports", evidence, identity)
    for verifier in task.verifiers:
        store.link("verifies", store.add("verifier", verifier), identity)
    return identity


def add_attempt(store: GraphStore, record: TrajectoryRecord, *, accepted: bool, reason: str = "") -> bool:
    """Add an episode as a branch of its task; whether it was new.

    Args:
        reason: the check that refused it.
    """
    task = add_task(store, record.task)
    messages = [
        store.add("action" if written_by_model(one) else "observation", one["role"], json.dumps(one, ensure_ascii=False))
        for one in record.messages
    ]
    state = task
    for step in record.steps:
        observation = None if step.observation is None else messages[step.observation]
        after = address(state, messages[step.message], str(step.call), observation or "")
        evidence = json.dumps(step.evidence)
        row = (after, task, state, messages[step.message], step.call, observation, step.verdict, step.readable, evidence)
        store.sql.execute("INSERT OR IGNORE INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        state = after
    layout = record.as_json() | {"messages": messages, "task": task}
    if "tools" in layout:
        layout["tools"] = store.add("action", "tools", json.dumps(layout["tools"], ensure_ascii=False))
    text = json.dumps(layout, ensure_ascii=False)
    row = (task, state, accepted, reason, text, address(text, reason))
    added = store.sql.execute(
        "INSERT OR IGNORE INTO attempts (task, last, accepted, reason, record, digest) VALUES (?, ?, ?, ?, ?, ?)", row
    )
    return bool(added.rowcount)


def attempts(store: GraphStore, *, accepted: bool | None = None) -> Iterator[TrajectoryRecord]:
    """The episodes in the order they were added; of those refused, `provenance.refused` says by which check."""
    where = "" if accepted is None else f" WHERE accepted = {int(accepted)}"
    for text, reason in store.sql.execute(f"SELECT record, reason FROM attempts{where} ORDER BY number"):
        record = record_from_json(_laid_out(store, json.loads(text)))
        yield record.with_provenance(refused=reason) if reason else record


def _laid_out(store: GraphStore, layout: dict[str, Any]) -> dict[str, Any]:
    def body(identity: str) -> Any:
        node = store.node(identity)
        assert node is not None
        return json.loads(node.body)

    found = layout | {"task": body(layout["task"]), "messages": [body(one) for one in layout["messages"]]}
    return found | ({"tools": body(layout["tools"])} if "tools" in layout else {})
