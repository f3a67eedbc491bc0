"""The five checks that every accepted task and trajectory has passed, each by its name and with a reject count of its own.

    checkable     an applicable verifier accepts the target and refuses another answer, and the graph leads to the target
    answered      the episode came to an answer, and the verifier accepts it
    nontrivial    it takes more than one lookup
    consulted     the required evidence was shown to the solver before it answered
    unambiguous   the instruction admits this answer and no other, and there is no way around the evidence

Source: Agents-A1 report (arXiv 2606.30616), knowledge-action section; how each is decided is ours. All five are programs: a model
may be asked besides (`roles.py`), never instead.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from .generators.base import WRONG, TaskGenerator
from .records import TaskRecord, TrajectoryRecord

Check = Literal["checkable", "answered", "nontrivial", "consulted", "unambiguous"]
CHECKS: tuple[Check, ...] = get_args(Check)
FEWEST_EVIDENCE = 2  # one piece of evidence is one lookup


def task_refusals(generator: TaskGenerator, task: TaskRecord) -> dict[Check, str]:
    """Why a task is refused, whoever solves it; empty where it is not."""
    refusals: dict[Check, str] = {}
    admitted = generator.admissible(task)
    if why := _uncheckable(generator, task, admitted):
        refusals["checkable"] = why
    if len(set(task.evidence)) < FEWEST_EVIDENCE:
        refusals["nontrivial"] = f"{len(set(task.evidence))} pieces of evidence are one lookup"
    elif why := generator.one_lookup(task):
        refusals["nontrivial"] = why
    if len(admitted) > 1:
        refusals["unambiguous"] = f"{len(admitted)} answers meet the instruction"
    elif why := generator.shortcut(task):
        refusals["unambiguous"] = why
    return refusals


def refusals(generator: TaskGenerator, record: TrajectoryRecord, of_task: Mapping[Check, str]) -> dict[Check, str]:
    """Why an episode is refused, by check, in their order; empty where it is accepted.

    Args:
        of_task: from `task_refusals`.
    """
    found = dict(of_task)
    if record.answer is None or record.reward != 1.0:
        found["answered"] = f"{record.status}, reward {record.reward}"
    useful = sum(1 for step in record.steps if step.readable and step.observation is not None)
    if useful < generator.fewest_steps:
        found.setdefault("nontrivial", f"{useful} steps that showed anything")
    shown = {identity for step in record.steps for identity in step.evidence}
    if missing := [identity for identity in record.task.evidence if identity not in shown]:
        found["consulted"] = f"{len(missing)} of {len(record.task.evidence)} pieces of evidence were never shown"
    return {check: found[check] for check in CHECKS if check in found}


def _uncheckable(generator: TaskGenerator, task: TaskRecord, admitted: frozenset[str]) -> str | None:
    if not task.verifiers or not set(task.verifiers) <= set(generator.verifiers):
        return "no verifier applies"
    if task.target is None:
        return "there is no target"
    if None in generator.region(task):
        return "evidence is not in the graph"
    if task.target not in admitted:
        return "no way in the graph leads to the target"
    try:
        if not generator.accepts(task, task.target):
            return "the verifier refuses the target"
        if generator.accepts(task, WRONG):
            return "the verifier accepts anything"
    except Exception as error:  # a verifier that raises decides nothing
        return f"the verifier raises {type(error).__name__}"
    return None
