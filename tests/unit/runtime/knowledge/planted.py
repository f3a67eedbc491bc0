"""Plants defects into clean tasks and episodes, each of a named kind, for every generator.

An ambiguous task is made by words or records that allow a second answer, and that answer is found here: by calling the generator's
tools or reading its corpus, with formulas and a search of this file's own.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from polymath.runtime.knowledge.checks import refusals, task_refusals
from polymath.runtime.knowledge.generators.base import ScriptedSolver, TaskGenerator
from polymath.runtime.knowledge.generators.constraints import RULES, _write
from polymath.runtime.knowledge.generators.registry import scratch_graph
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.player import Bounds, Player
from polymath.runtime.knowledge.records import TaskRecord, TrajectoryRecord, written_by_model
from polymath.runtime.worlds.base import Call
from polymath.runtime.worlds.protocol import Message

OF_TASKS = ("shortcut", "ambiguous", "unreachable")
OF_EPISODES = ("unread evidence", "lucky guess")
DEFECTS = (*OF_TASKS, *OF_EPISODES)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A task with a defect, the world it is in, and who plays it (nobody: the oracle)."""

    generator: TaskGenerator
    task: TaskRecord
    solver: Any = None
    second: str | None = None  # where it is ambiguous: another answer that is as right


Spoil = Callable[[TaskGenerator, TaskRecord, random.Random], TaskRecord | Planted | None]


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
    return Player(Bounds(tool_seconds=120)).play(generator.start_record(task), task, generator.tools_of(task), solver)


def verdict(generator: TaskGenerator, task: TaskRecord, solver: Any = None) -> dict[str, str]:
    """What the checks say of a task and its episode."""
    return dict(refusals(generator, played(generator, task, solver), task_refusals(generator, task)))


def planted(generator: TaskGenerator, task: TaskRecord, defect: str, rng: random.Random) -> Planted | None:
    """The task with a defect; None where this task cannot have it."""
    if defect in OF_TASKS:
        spoilt = SPOIL[generator.name][defect](generator, task, rng)
        return Planted(generator=generator, task=spoilt) if isinstance(spoilt, TaskRecord) else spoilt
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
    return None if messages is None else Planted(generator=generator, task=task, solver=Replay(messages))


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


def _search_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted | None:
    """A clue that many pages have; where the words between the links lead from each is read in their texts."""
    clue = rng.choice(("entered under number", "is a town entered", "roll."))
    pages = {node.name: node.body for node in generator.store.nodes("evidence")}
    here = {name for name, body in pages.items() if clue in body}
    for cue in task.payload["cues"]:
        texts = [pages[name].split(f"{cue} ")[1] for name in here if pages[name].count(f"{cue} ") == 1]
        here = {name for text in texts for name in (text.partition(".")[0],) if name in pages}
    others = sorted(here - {task.target})
    task = replace(_payload(task, clue=clue), instruction=task.instruction.replace(task.payload["clue"], clue))
    return Planted(generator=generator, task=task, second=others[0]) if others else None


def _other_target(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    names = [node.name for node in generator.store.nodes("evidence")]
    return replace(task, target=rng.choice([name for name in names if name != task.target]))


def _tools_shortcut(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    return replace(task, instruction=f"{task.instruction} Its id is {(task.target or '').split()[1]}.")


def _with(generator: TaskGenerator, add: Callable[[GraphStore], Any]) -> TaskGenerator:
    """The same world with something more in its graph."""
    store = scratch_graph()
    generator.store.sql.backup(store.sql)
    add(store)
    return type(generator)(store, generator.settings)


def _records(generator: TaskGenerator, task: TaskRecord) -> list[str]:
    """Every record that the words of a request lead to, by calling the tools."""
    (way,) = re.findall(r"set the (.+) of a (\w+) to ", task.instruction)
    *steps, person = [*reversed(way[0].split(" of the ")), way[1]]

    def asked(name: str, value: str) -> list[str]:
        schema = next(one["function"] for one in generator.tools if one["function"]["name"] == name)
        (key,) = schema["parameters"]["properties"]
        return generator.serve(task, {}, Call(name, {key: value})).text.splitlines()

    here = [line.split(":")[0] for line in asked(f"find_{person}", task.payload["name"])]
    for step in steps:
        *color, resource = step.split()
        lines = [line for one in here for line in asked(f"get_{resource}", one) if ": " in line]
        here = [line.split(":")[0] for line in lines if not color or f"color {color[0]}," in line]
    return [f"{steps[-1].split()[-1]} {one}" for one in here]


def _tools_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted | None:
    """A colour is left out, a second state is offered, or the service holds one more record like the one that is meant."""
    resource, identity, wanted = (task.target or "").split(" ", 2)
    kind = rng.choice(("colour", "state", "record"))
    if kind == "colour":
        color = rng.choice(task.payload["colors"])
        task = replace(task, instruction=task.instruction.replace(f"{color} ", "", 1))
    elif kind == "state":
        other = rng.choice([one for one in ("paused", "renewed", "checked") if one != wanted])
        task = replace(task, instruction=task.instruction.replace(f" to {wanted}.", f" to {wanted} or {other}."))
        return Planted(generator=generator, task=task, second=f"{resource} {identity} {other}")
    else:
        (node,) = generator.store.nodes("fact", f"{resource} {identity}")
        generator = _with(generator, lambda store: store.add("fact", f"{resource} {identity}z", node.body))
    others = [one for one in _records(generator, task) if one != f"{resource} {identity}"]
    return Planted(generator=generator, task=task, second=f"{others[0]} {wanted}") if others else None


def _tools_unreachable(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    if rng.random() < 0.5:
        return _payload(task, name="nobody at all")
    resource, _, wanted = (task.target or "").split(" ", 2)
    other = rng.choice([one for one in generator._rows[resource] if f" {one} " not in (task.target or "")])
    return replace(task, target=f"{resource} {other} {wanted}")


GIVES = {"dilute": "diluted", "osmotic": "pressure", "gas_volume": "gas", "boiling_rise": "rise"}  # others by their own name


def _everything(generator: TaskGenerator, task: TaskRecord, given: Mapping[str, Any]) -> dict[str, str]:
    """All that the tools can compute from what is given, by calling each as soon as its arguments are known."""
    known, shown = dict(given), {}
    while True:
        for one in (schema["function"] for schema in generator.tools):
            takes = one["parameters"]["properties"]
            if one["name"] not in shown and set(takes) <= set(known):
                shown[one["name"]] = generator.serve(task, {}, Call(one["name"], {name: known[name] for name in takes})).text
                known[GIVES.get(one["name"], one["name"])] = float(shown[one["name"]])
                break
        else:
            return {GIVES.get(name, name): text for name, text in shown.items()}


def _chain_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted | None:
    """Which concentration is left open, a number is left out, or a second one is offered."""
    given, quantity = task.payload["given"], task.payload["quantity"]
    name = rng.choice([name for name in given if name != "formula"])
    other = given[name] + rng.randint(1, 3)
    kind = rng.choice(("quantity", "left out", "offered"))
    if kind == "quantity":
        if " after dilution in mol/L" not in task.instruction:
            return None
        task = replace(task, instruction=task.instruction.replace(" after dilution", ""))
        second = _everything(generator, task, given)["molarity"]
    else:
        place = task.instruction.index("given")
        text = task.instruction[place:]
        unit = {"mass": " g", "volume": " L", "kelvin": " K", "kilopascal": " kPa", "solvent": " kg", "factor": ""}[name]
        said = {"left out": "some", "offered": f"{given[name]} or {other}"}[kind]
        spoilt = re.sub(rf"(?<!\w){given[name]}{unit}(?!\w)", f"{said}{unit}", text, count=1)
        assert spoilt != text
        task = replace(task, instruction=task.instruction[:place] + spoilt)
        second = _everything(generator, task, {**given, name: other})[quantity]
    return None if generator.accepts(task, second) else Planted(generator=generator, task=task, second=second)


def _chain_unreachable(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    gone = rng.choice([name for name in task.payload["given"] if name != "formula"])
    return _payload(task, given={name: value for name, value in task.payload["given"].items() if name != gone})


LAWS: dict[str, Callable[..., float]] = {  # in SI units, and the result's own
    "delay": lambda p, km: 1e6 * km / p,
    "mass": lambda p, litres: p * litres * 1e-3,
    "heat": lambda p, grams, kelvin: p * grams * kelvin * 1e-6,
    "resistance": lambda p, metres, mm2: 1e3 * (p * 1e-9) * metres / (mm2 * 1e-6),
}


def _measured(store: GraphStore, material: str, of: str) -> set[tuple[float, float]]:
    """What the articles and papers of a corpus say of a sample: values at 20 degrees and coefficients."""
    bodies = [node.body for node in store.nodes("evidence") if f"{of} of {material} " in node.body]
    values = [float(found[1]) for body in bodies if (found := re.search(r" is (\S+) ", body)) and "Abstract" not in body]
    slopes = [float(found[1]) for body in bodies if (found := re.search(r"1 \+ (\S+) \(T", body))]
    return {(value, slope) for value in values for slope in slopes}


def _science_ambiguous(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted | None:
    """The sample's number is left out, so is the temperature, or a second article measured the sample otherwise."""
    material, degrees, form = task.payload["material"], task.payload["degrees"], task.payload["form"]
    of = {"delay": "speed of sound", "mass": "density", "heat": "specific heat", "resistance": "resistivity"}[form]
    kind = rng.choice(("sample", "temperature", "article"))
    materials, temperatures = [material], [degrees]
    if kind == "sample":
        task = replace(task, instruction=task.instruction.replace(f"sample {material}", f"sample {material.split()[0]}"))
        names = [node.name.removeprefix(f"{of} of ") for node in generator.store.nodes("evidence")]
        materials = [name for name in names if name.startswith(f"{material.split()[0]} ")]
    elif kind == "temperature":
        task = replace(task, instruction=task.instruction.replace(f" at {degrees} degrees", ""))
        temperatures = [degrees, 21]
    else:
        (node,) = generator.store.nodes("evidence", f"{of} of {material}")
        changed = re.sub(r" is (\S+) ", lambda found: f" is {2 * float(found[1]):g} ", node.body, count=1)
        generator = _with(generator, lambda store: store.add("evidence", node.name, changed))
    answers = {
        f"{LAWS[form](value * (1 + slope * (temperature - 20)), **task.payload['given']):.5g}"
        for name in materials
        for value, slope in _measured(generator.store, name, of)
        for temperature in temperatures
    }
    assert any(generator.accepts(task, one) for one in answers)
    others = sorted(one for one in answers if not generator.accepts(task, one))
    return Planted(generator=generator, task=task, second=others[0]) if others else None


def _science_unreachable(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    gone = "unobtainium 1"
    return replace(_payload(task, material=gone), instruction=task.instruction.replace(task.payload["material"], gone))


def _rule_unsaid(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted | None:
    """A rule is left out, and a text keeps all the others."""
    kind = rng.choice([kind for kind in task.payload["rules"] if kind != "topic"])
    said = RULES[kind].says.format(task.payload["rules"][kind])
    text = _write({one: value for one, value in task.payload["rules"].items() if one != kind}, rng)
    if RULES[kind].holds(text, task.payload["rules"][kind]):
        return None
    task = replace(task, instruction=task.instruction.replace(said, "").strip())
    return Planted(generator=generator, task=task, second=text)


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


def _without_lines(task: TaskRecord, words: str) -> TaskRecord:
    return replace(task, instruction="\n".join(line for line in task.instruction.split("\n") if words not in line))


def _without_rule(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted:
    """Nothing says which of two entries counts."""
    task = _without_lines(task, "entries of a toll disagree")
    toll = re.compile(rf"The toll of {re.escape(task.payload['place'])} is entered with grade \d+ as (\d+) marks")
    letters = {re.search(rf"([A-D])\) {amount}\b", task.instruction)[1] for amount in toll.findall(task.instruction)}  # type: ignore[index]
    (second,) = letters - {task.target}
    return Planted(generator=generator, task=task, second=second)


def _without_entries(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
    return _without_lines(task, f"The toll of {task.payload['place']} is")


def _bound_open(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> Planted | None:
    """The bound is left out, or a lower one is offered: a straight line is enough by the words, and not for the verifier."""
    table = generator._table(json.dumps(task.payload["table"]))
    features, labels, rows, private = (np.array(one) for split in ("train", "private") for one in zip(*table[split], strict=True))
    weights = np.linalg.lstsq(np.c_[np.ones(len(features)), features], labels, rcond=None)[0]
    left = private - np.c_[np.ones(len(rows)), rows] @ weights
    score = 1 - (left @ left) / ((private - private.mean()) ** 2).sum()
    low = int(score * 10) / 10
    if not 0 < low < task.payload["bound"]:
        return None
    said = f"R2 {task.payload['bound']:g}"
    instead = rng.choice(("a good R2", f"R2 {low:g} or {task.payload['bound']:g}"))
    return Planted(
        generator=generator, task=replace(task, instruction=task.instruction.replace(said, instead)), second=f"R2 {score:g}"
    )


def _bounded(bound: float) -> Spoil:
    def spoil(generator: TaskGenerator, task: TaskRecord, rng: random.Random) -> TaskRecord:
        text = task.instruction.replace(f"R2 {task.payload['bound']:g}", f"R2 {bound:g}")
        return replace(_payload(task, bound=bound), instruction=text)

    return spoil


SPOIL: dict[str, dict[str, Spoil]] = {
    "search_walks": {
        "shortcut": _said(" It is near {}."),
        "ambiguous": _search_ambiguous,
        "unreachable": _other_target,
    },
    "engineering_tree": {
        "shortcut": _bounded(-1.0),
        "ambiguous": _bound_open,
        "unreachable": _bounded(0.9999),
    },
    "science_rewrites": {
        "shortcut": _said(" It is near {} ."),
        "ambiguous": _science_ambiguous,
        "unreachable": _science_unreachable,
    },
    "constraints": {"shortcut": _said(" For example: {}"), "ambiguous": _rule_unsaid, "unreachable": _rules_apart},
    "long_context": {
        "shortcut": _choices_apart,
        "ambiguous": _without_rule,
        "unreachable": _without_entries,
    },
    "tool_subgraphs": {"shortcut": _tools_shortcut, "ambiguous": _tools_ambiguous, "unreachable": _tools_unreachable},
    "scientific_chains": {"shortcut": _said(" It is near {} ."), "ambiguous": _chain_ambiguous, "unreachable": _chain_unreachable},
}
