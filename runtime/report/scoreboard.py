"""The scoreboard: what every model scored in every domain, and how much of its teachers' gain the student recovered.

`scoreboard.json` holds fractions. `domains.<domain>` has `base`, `sft`, `teacher`, `student`, `sft_continued` and
`recovered_gain`, each null until it is known, with intervals, episode counts and truncations beside them.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_json
from .facts import RunFacts, read_run
from .statistics import DomainGains, Estimate, domain_gains, mean_recovered, wilson

SCOREBOARD = "scoreboard.json"
ROWS = ("base", "sft", "teacher", "sft_continued", "student")


def write_scoreboard(run_dir: Path) -> dict[str, Any]:
    """Compute `scoreboard.json` of a run from its evaluations, write it and return it."""
    scoreboard = build_scoreboard(read_run(run_dir))
    write_json(run_dir / SCOREBOARD, scoreboard)
    return scoreboard


def build_scoreboard(facts: RunFacts) -> dict[str, Any]:
    """The scoreboard of the evaluations that are finished."""
    found = _evaluations(facts)
    names = [domain for domain in facts.domains if any(domain in scores for scores in found.values())]
    gains = {name: _gains(facts, found, name) for name in names}
    routed = {name: gain for name, gain in gains.items() if name in facts.routing}
    known = {name: gain for name, gain in routed.items() if gain is not None}
    complete = bool(known) and len(known) == len(routed)
    mean = mean_recovered(known) if complete else Estimate(value=None, low=None, high=None)
    domains = {name: _domain(facts, found, name, gains[name]) for name in names}
    return {
        "run": facts.plan.name,
        "recipe_digest": facts.plan.recipe_digest,
        "complete": all(one.finished for one in facts.jobs.values() if one.job.kind == "evaluate"),
        "domains": domains,
        "means": {row: _mean([domain[row] for domain in domains.values()]) for row in ROWS},
        "mean_recovered_gain": mean.value,
        "mean_recovered_gain_ci95": mean.interval,
    }


def _evaluations(facts: RunFacts) -> dict[str, Mapping[str, Any]]:
    """Scores per domain by subject: base, sft, student, sft_continued and teachers' names."""
    results = [one.result for one in facts.jobs.values() if one.job.kind == "evaluate" and one.result is not None]
    return {result["subject"]: result["domains"] for result in results}


def _domain(facts: RunFacts, found: Mapping[str, Mapping[str, Any]], domain: str, gains: DomainGains | None) -> dict[str, Any]:
    teacher = facts.routing.get(domain)
    scores = {row: found.get(teacher if row == "teacher" and teacher else row, {}).get(domain) for row in ROWS}
    present = {row: score for row, score in scores.items() if score is not None}
    return {
        **{row: None if score is None else score["score"] for row, score in scores.items()},
        "teacher_name": teacher,
        "intervals": {row: wilson(sum(score["outcomes"]), score["episodes"]).interval for row, score in present.items()},
        "episodes": {row: score["episodes"] for row, score in present.items()},
        "truncated": {row: score["truncated"] for row, score in present.items()},
        "forced": {row: score.get("forced", 0) for row, score in present.items()},  # absent in results of older versions
        "teacher_gain": gains.teacher.value if gains else None,
        "teacher_gain_ci95": gains.teacher.interval if gains else None,
        "student_gain": gains.student.value if gains else None,
        "student_gain_ci95": gains.student.interval if gains else None,
        "recovered_gain": gains.recovered.value if gains else None,
        "recovered_gain_ci95": gains.recovered.interval if gains else None,
    }


def _gains(facts: RunFacts, found: Mapping[str, Mapping[str, Any]], domain: str) -> DomainGains | None:
    """Gains of a domain whose SFT, teacher and student were all evaluated on it."""
    subjects = ["sft", facts.routing.get(domain, ""), "student"]
    scores = [found.get(subject, {}).get(domain) for subject in subjects]
    if any(score is None for score in scores):
        return None
    if len({score["tasks_digest"] for score in scores if score is not None}) != 1:
        raise ValueError(f"{', '.join(subjects)} were evaluated on different tasks of `{domain}`")
    # Each domain has draws of its own, the same in every report of the run.
    seed = int(hashlib.sha256(f"{facts.plan.seed}:gain:{domain}".encode()).hexdigest()[:8], 16)
    sft, teacher, student = (score["outcomes"] for score in scores if score is not None)
    return domain_gains(sft, teacher, student, seed)


def _mean(values: list[float | None]) -> float | None:
    """The mean, known only where every domain's value is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
