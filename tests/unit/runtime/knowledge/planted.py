"""Plants defects into clean tasks and episodes, each of a named kind, for every generator."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from polymath.runtime.knowledge.checks import refusals, task_refusals
from polymath.runtime.knowledge.generators.base import ScriptedSolver, TaskGenerator
from polymath.runtime.knowledge.generators.constraints import RULES, _write
from polymath.runtime.knowledge.player import Bounds, Player
from polymath.runtime.knowledge.records import TaskRecord, TrajectoryRecord, written_by_model
from polymath.runtime.worlds.protocol import Message

OF_TASKS = ("shortcut", "ambiguous", "unreachable")
OF_EPISODES = ("unread evidence", "lucky guess")
DEFECTS = (*OF_TASKS, *OF_EPISODES)
Spoil = Callable[[TaskGenerator, TaskRecord, random.Random], TaskRecord | None]


class Replay:
    """A solver that says what it was given, whatever it sees."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._left = list(messages)

    def next(self, observations: Sequence[Message]) -> Message:
        return self._left.pop(0) if self._left else {"role": "assistant", "content": "unknown"}


def clean_tasks(generator: TaskGenerator, count: int, seed: int) -> list[TaskRecord]:
    """Tasks as they are drawn, unchecked."""
    rng = random.Random(seed)
    found: dict[str, TaskRecord] = {}
    while len(found) < count:
        if (task := generator.draw(rng)) is not None:
            found[task.key] = task
    return list(found.values())


def played(generator: TaskGenerator, task: TaskRecord, solver: Any = None) -> TrajectoryRecord:
    """An episode of the oracle, or of another solver."""
    solver = solver or ScriptedSolver(generator, task, seed=0)
    return Player(Bounds(tool_seconds=120)).play(generator.start_record(task), task, generator.tools, solver)


def verdict(generator: TaskGenerator, task: TaskRecord, solver: Any = None) -> dict[str, str]:
    """What the checks say of a task and its episode."""
    return dict(refusals(generator, played(generator, task, solver), task_refusals(generator, task)))


def planted(generator: TaskGenerator, task: TaskRecord, defect: str, rng: random.Random) -> tuple[TaskRecord, Any] | None:
    """The task with a defect, and the solver to play it; None where this task cannot have it."""
    if defect in OF_TASKS:
        spoilt = SPOIL[generator.name][defect](generator, task, rng)
        return None if spoilt is None else (spoilt, None)
    record = played(generator, task)
    if defect == "unread evidence":
        messages = _without_one(generator, record, rng)
    elif generator.name == "constraints":
        return None  # a text that keeps every constraint is right, however it came about
    else:
        shown = {step.message for step in record.steps if step.evidence}
        messages = [one for place, one in enumerate(record.messages) if written_by_model(one) and place not in shown]
        if not generator.fewest_steps:
            messages = [{"role": "assistant", "content": f"Answer: {task.target}"}]
        elif task.target and generator.name not in ("tool_subgraphs", "engineering_tree"):
            messages = [{"role": "assistant", "content": task.target}]
    return None if messages is None else (task, Replay(messages))


def _without_one(generator: TaskGenerator, record: TrajectoryRecord, rng: random.Random) -> list[Message] | None:
    """What the oracle said, without what showed one piece of the required evidence."""
    task = record.task
    if generator.name == "constraints":
        for kind in rng.sample(sorted(task.payload["rules"]), len(task.payload["rules"])):
            rules = {one: value for one, value in task.payload["rules"].items() if one != kind}
            text = _write({"topic": "nothing", **rules}, rng)
            if not RULES[kind].holds(text, task.payload["rules"][kind]):
                return [{"role": "assistant", "content": text}]
        return None
    if not generator.fewest_steps:
        *_, last = record.messages
        return [{"role": "assistant", "content": last["content"].replace("[", "(", 2 if rng.random() < 0.5 else 1)}]
    evidence = rng.choice(task.evidence)
    going = {step.message for step in record.steps if evidence in step.evidence}
    return [one for place, one in enumerate(record.messages) if written_by_model(one) and place not in going]


def _said(extra: str) -> Spoil:
    """The answer said in the instruction."""
    return lambda generator, task, rng: replace(task, instruction=task.instruction + extra.format(task.target))


def _payload(task: TaskRecord, **changed: Any) -> TaskRecord:
    return replace(task, payload={**task.payload, **changed})


def _search_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    clue = rng.choice(("entered under number", "is a town entered", "roll."))
    return replace(_payload(task, clue=clue), instruction=task.instruction.replace(task.payload["clue"], clue))


def _other_target(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    names = [node.name for node in generator.store.nodes("evidence")]
    return replace(task, target=rng.choice([name for name in names if name != task.target]))


def _tools_shortcut(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    return replace(task, instruction=f"{task.instruction} Its id is {(task.target or '').split()[1]}.")


def _tools_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord | None:
    vague = _payload(task, colors=[None] * len(task.payload["colors"]))
    return vague if len(generator.admissible(vague)) > 1 else None


def _tools_unreachable(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    if rng.random() < 0.5:
        return _payload(task, name="nobody at all")
    resource, _, wanted = (task.target or "").split(" ", 2)
    other = rng.choice([one for one in generator._rows[resource] if f" {one} " not in (task.target or "")])
    return replace(task, target=f"{resource} {other} {wanted}")


def _chain_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord | None:
    vague = _payload(task, quantities=[*task.payload["quantities"], "amount"])
    return vague if len(generator.admissible(vague)) > 1 else None  # in a volume of 1 L both are one number


def _chain_unreachable(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    gone = rng.choice([name for name in task.payload["given"] if name != "formula"])
    return _payload(task, given={name: value for name, value in task.payload["given"].items() if name != gone})


def _science_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord | None:
    vague = _payload(task, material=task.payload["material"].split()[0])
    return vague if len(generator.admissible(vague)) > 1 else None


def _rule_unsaid(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    kind = rng.choice([kind for kind in task.payload["rules"] if kind != "topic"])
    said = RULES[kind].says.format(task.payload["rules"][kind])
    return replace(task, instruction=task.instruction.replace(said, "").strip())


def _rules_apart(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    return _payload(task, rules={**task.payload["rules"], "at_least": 40, "at_most": 5})


def _choices_apart(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    """The wrong reading is no choice: the right one is the only entry."""
    right = task.payload["choices"]["ABCD".index(task.target or "A")]
    choices = [one if one == right else 5000 + number for number, one in enumerate(task.payload["choices"])]
    text, _, question = task.instruction.rpartition("\n\n")
    for old, new in zip(task.payload["choices"], choices, strict=True):
        question = question.replace(f") {old}", f") {new}")
    return replace(_payload(task, choices=choices), instruction=f"{text}\n\n{question}")


def _without_documents(of: str) -> Spoil:
    def spoil(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
        words = "entries of a toll disagree" if of == "rule" else f"The toll of {task.payload['place']} is"
        return replace(task, instruction="\n".join(line for line in task.instruction.split("\n") if words not in line))

    return spoil


def _two_columns(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    other = rng.choice(task.payload["names"])
    text = task.instruction.replace("column target ", f"column {other} or column target ")
    return replace(_payload(task, targets=[other, "target"]), instruction=text)


SPOIL: dict[str, dict[str, Spoil]] = {
    "search_walks": {
        "shortcut": _said(" It is near {}."),
        "ambiguous": _search_ambiguous,
        "unreachable": _other_target,
    },
    "engineering_tree": {
        "shortcut": lambda generator, task, rng: _payload(task, bound=-1.0),
        "ambiguous": _two_columns,
        "unreachable": lambda generator, task, rng: _payload(task, bound=0.9999),
    },
    "science_rewrites": {
        "shortcut": _said(" It is near {} ."),
        "ambiguous": _science_ambiguous,
        "unreachable": lambda generator, task, rng: _payload(task, material="unobtainium 1"),
    },
    "constraints": {"shortcut": _said(" For example: {}"), "ambiguous": _rule_unsaid, "unreachable": _rules_apart},
    "long_context": {
        "shortcut": _choices_apart,
        "ambiguous": _without_documents("rule"),
        "unreachable": _without_documents("entries"),
    },
    "tool_subgraphs": {"shortcut": _tools_shortcut, "ambiguous": _tools_ambiguous, "unreachable": _tools_unreachable},
    "scientific_chains": {"shortcut": _said(" It is near {} ."), "ambiguous": _chain_ambiguous, "unreachable": _chain_unreachable},
}
