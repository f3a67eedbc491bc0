"""A sweep's figures: what every run scored, and how much of the first row's gain of teachers over SFT it recovered.

Recovered gain of a row in a domain at a seed = (subject - SFT) / (teacher - SFT), with SFT and the teachers of the first row at the
same seed (and point of the axis). A row's mean is over its domains and seeds. Intervals resample held-out tasks within domain and
seed, each task with its outcomes of all models; the draws of a domain and seed are the same for every row.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...compiler.plan import Job
from ...specs.diagnostics import ExitCode, UserError
from ..jobs import is_done
from ..launch.events import job_seconds
from ..report.statistics import DomainGains, domain_gains, mean_recovered
from .parts import SweepParts, SweepRun

Scores = Mapping[str, Mapping[str, Any]]  # an evaluation's result by domain


class Figures:
    """Gathers a sweep's figures; what a finished run scored is read and resampled once."""

    def __init__(self, parts: SweepParts) -> None:
        self.parts = parts
        self._measured: dict[SweepRun, tuple[dict[str, Any], Mapping[str, DomainGains]]] = {}

    def gather(self) -> dict[str, Any]:
        """Everything that `sweep.json` holds, of the runs that are measured so far."""
        for run in self.parts.runs:
            if run not in self._measured:
                found = _measure(run, self.parts.reference_of(run))
                if found is not None:
                    self._measured[run] = found
        points = dict.fromkeys(run.at for run in self.parts.runs)
        rows = [self._row(row, title, at) for at in points for row, title in self.parts.titles.items()]
        headline = rows[0]
        return {
            "sweep": self.parts.name,
            "reference": self.parts.reference,
            **({} if self.parts.axis is None else {"axis": self.parts.axis}),
            "complete": len(self._measured) == len(self.parts.runs),
            "recovered_gain": {**headline["recovered_gain"], "seeds": headline["seeds"]},
            "rows": rows,
            "runs": [self._run(run) for run in self.parts.runs],
        }

    def _row(self, row: str, title: str, at: float | None) -> dict[str, Any]:
        runs = [run for run in self.parts.runs if (run.row, run.at) == (row, at)]
        there = [self._measured[run] for run in runs if run in self._measured]
        figures = [figure for figure, _ in there]
        gains = {(number, domain): gain for number, (_, own) in enumerate(there) for domain, gain in own.items()}
        mean = mean_recovered(gains)
        domains = {
            domain: _mean([figure["domains"][domain]["recovered_gain"] for figure in figures])
            for domain in (figures[0]["domains"] if figures else ())
        }
        known = {domain: value for domain, value in domains.items() if value is not None}
        lowest = min(known, key=lambda domain: known[domain]) if known and len(known) == len(domains) else None
        return {
            "row": row,
            **({} if at is None else {"at": at}),
            "title": title,
            "subject": runs[0].subject,
            "seeds": [figure["seed"] for figure in figures],
            "seeds_planned": [run.seed for run in runs],
            "mean_score": _mean([figure["mean_score"] for figure in figures]),
            "recovered_gain": {
                "mean": mean.value,
                "min_domain": known[lowest] if lowest is not None else None,
                "interval": mean.interval,
            },
            "lowest_domain": lowest,
            "domains": domains,
            "trained_tokens": _mean([figure["trained_tokens"] for figure in figures]),
            "minutes": _mean([figure["minutes"] for figure in figures]),
        }

    def _run(self, run: SweepRun) -> dict[str, Any]:
        measured = self._measured.get(run)
        place = {"row": run.row, **({} if run.at is None else {"at": run.at}), "seed": run.seed}
        head = {**place, "recipe_digest": run.plan.recipe_digest, "measured": measured is not None}
        return {**head, **({} if measured is None else measured[0])}


def _measure(run: SweepRun, reference: SweepRun) -> tuple[dict[str, Any], Mapping[str, DomainGains]] | None:
    """What a run scored and recovered; None until it and the first row's models are evaluated.

    Raises:
        UserError: they did not try the same tasks.
    """
    own = _scores(run, run.subject)
    sft = _scores(reference, "sft")
    routing: Mapping[str, str] = next(job.settings["routing"] for job in reference.plan.jobs if "routing" in job.settings)
    by_teacher = {name: _scores(reference, name) for name in dict.fromkeys(routing.values())}
    if own is None or sft is None or any(scores is None for scores in by_teacher.values()):
        return None
    teachers = {domain: (by_teacher[name] or {})[domain] for domain, name in routing.items()}
    gains = {domain: _gains(run, domain, sft[domain], teachers[domain], own[domain]) for domain in sorted(routing)}
    domains = {
        domain: {
            "sft": sft[domain]["score"],
            "teacher": teachers[domain]["score"],
            "score": own[domain]["score"],
            "recovered_gain": gain.recovered.value,
            "interval": gain.recovered.interval,
        }
        for domain, gain in gains.items()
    }
    mean = mean_recovered(gains)
    maker = _maker(run)
    figure = {
        "seed": run.seed,
        "mean_score": math.fsum(one["score"] for one in domains.values()) / len(domains),
        "recovered_gain": {"mean": mean.value, "interval": mean.interval},
        "domains": domains,
        "trained_tokens": _trained_tokens(run, maker),
        "minutes": _minutes(run, maker),
    }
    return figure, gains


def _scores(run: SweepRun, subject: str) -> Scores | None:
    job = run.evaluation(subject)
    folder = run.folder_of(job)
    return json.loads((folder / "result.json").read_text())["domains"] if is_done(folder, job) else None


def _gains(run: SweepRun, domain: str, *scores: Mapping[str, Any]) -> DomainGains:
    """Gains of a domain from the results of SFT, its teacher and the run's subject."""
    if len({score["tasks_digest"] for score in scores}) != 1:
        raise UserError(
            f"{run.name} and the first row were evaluated on different tasks of `{domain}`",
            exit_code=ExitCode.FAILED,
            fix="leave the domain's `prompts` as they are in every row",
        )
    seed = int(hashlib.sha256(f"{run.seed}:gain:{domain}".encode()).hexdigest()[:8], 16)  # the run's report draws the same
    sft, teacher, own = (score["outcomes"] for score in scores)
    return domain_gains(sft, teacher, own, seed)


def _maker(run: SweepRun) -> Job:
    """The job that made the row's model."""
    made_by = run.evaluation(run.subject).inputs["model"].job
    assert made_by is not None
    return run.plan.job(made_by)


def _trained_tokens(run: SweepRun, job: Job) -> int:
    """Tokens that a job's loss was taken over; none where it trains nothing."""
    path = run.folder_of(job) / "metrics.jsonl"
    return sum(json.loads(line)["tokens"] for line in path.read_text().splitlines()) if path.exists() else 0


def _minutes(run: SweepRun, job: Job) -> float | None:
    seconds = job_seconds(run.run_dir, {job.id: job.folder}).get(job.id)
    return None if seconds is None else seconds / 60


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where there is nothing, or not everything, to average."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
