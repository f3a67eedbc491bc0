"""What a sweep consists of once its rows are compiled: runs, each a plan in a folder, and where they write."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...compiler.plan import Job, Plan, read_plan
from ..jobs import is_done


def point(at: float) -> str:
    """A point of the axis in words and names of files: no two points share one, however close they lie."""
    return f"{at:.15g}"


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A row at a seed, and at a point where the sweep has an axis. All rows of a seed (and point) share a run directory, and so
    every job that their plans have in common."""

    at: float | None
    row: str
    seed: int
    subject: str  # the model that the row is about, as its evaluation calls it
    plan_folder: Path
    run_dir: Path

    @cached_property
    def plan(self) -> Plan:
        """Its plan."""
        return read_plan(self.plan_folder)

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.row}{'' if self.at is None else f' at {point(self.at)}'}, seed {self.seed}"

    def evaluation(self, subject: str) -> Job:
        """The job that evaluates a model of this run."""
        return self.plan.job(f"evaluate.{subject}")

    def folder_of(self, job: Job) -> Path:
        """A job's folder."""
        return self.run_dir / "jobs" / job.folder

    def is_finished(self) -> bool:
        """Whether every job of its plan is done."""
        return all(is_done(self.folder_of(job), job) for job in self.plan.jobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepParts:
    """A sweep as the runtime sees it."""

    name: str
    folder: Path  # of the results
    axis: str | None  # its title, where the rows are run at several points
    titles: Mapping[str, str]  # by row, in the order of the table; the first row is the reference
    runs: tuple[SweepRun, ...]

    @property
    def reference(self) -> str:
        """The first row."""
        return next(iter(self.titles))

    def reference_of(self, run: SweepRun) -> SweepRun:
        """The first row's run at the same seed and point."""
        return next(one for one in self.runs if (one.row, one.seed, one.at) == (self.reference, run.seed, run.at))


def run_dir_of(folder: Path, at: float | None, seed: int) -> Path:
    """Where all rows of a seed run, at a point where there is one."""
    return (folder if at is None else folder / f"at-{point(at)}") / f"seed-{seed}"


def plan_folder_of(run_dir: Path, row: str) -> Path:
    """Where the plan of a row lies."""
    return run_dir / "plans" / row
