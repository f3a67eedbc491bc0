"""What a launch does with each job, and why: reuse it, go on with it, or run it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...compiler.plan import Job, Plan
from ..jobs import DONE, is_done, verify_done

State = Literal["finished", "resume", "run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What happens to one job."""

    job: Job
    state: State
    reason: str

    def __str__(self) -> str:
        return f"{self.job.id}: {self.reason}"


def decide(plan: Plan, run_dir: Path) -> list[Decision]:
    """One decision per job, in the plan's order.

    Raises:
        UserError: a finished job that an unfinished one reads from was changed after it was published (exit 4).
    """
    decisions = [_decide(job, run_dir / "jobs" / job.folder) for job in plan.jobs]
    read = {need for decision in decisions if decision.state != "finished" for need in decision.job.needs}
    for decision in decisions:
        if decision.state == "finished" and decision.job.id in read:
            verify_done(run_dir / "jobs" / decision.job.folder, decision.job, run_dir)
    return decisions


def last_checkpoint(folder: Path) -> int | None:
    """Step of the newest published checkpoint of a job."""
    return _newest(folder / "checkpoints", r"step-(\d+)")


def last_ledger_step(folder: Path) -> int | None:
    """Index of the newest rollout batch that a job published."""
    return _newest(folder / "batches", r"(\d{6,})")


def can_resume(folder: Path) -> bool:
    """Whether a job left something to go on from."""
    return last_checkpoint(folder) is not None or last_ledger_step(folder) is not None


def unfinished(decisions: Sequence[Decision]) -> list[Job]:
    """The jobs that this launch has to bring to an end."""
    return [decision.job for decision in decisions if decision.state != "finished"]


def _decide(job: Job, folder: Path) -> Decision:
    if is_done(folder, job):
        return Decision(job=job, state="finished", reason="finished earlier, reused")
    step, batch = last_checkpoint(folder), last_ledger_step(folder)
    if step is not None:
        ledger = f", rollouts kept up to batch {batch}" if batch is not None else ""
        return Decision(job=job, state="resume", reason=f"goes on from step {step} (checkpoint step-{step}{ledger})")
    if batch is not None:
        return Decision(job=job, state="resume", reason=f"starts again with the rollouts it kept (up to batch {batch})")
    if (folder / DONE).exists():
        return Decision(job=job, state="run", reason=f"runs again: {_why_not_done(folder)}")
    if folder.exists() and any(folder.iterdir()):
        return Decision(job=job, state="run", reason="runs again: it was cut off before its first checkpoint")
    return Decision(job=job, state="run", reason="to run")


def _why_not_done(folder: Path) -> str:
    try:
        sizes = {name: entry["bytes"] for name, entry in json.loads((folder / DONE).read_text())["files"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"its {DONE} cannot be read"
    for name, size in sizes.items():
        if not (folder / name).exists():
            return f"its {name} is missing"
        if (folder / name).stat().st_size != size:
            return f"its {name} has another size than it wrote"
    return f"its {DONE} is another job's"


def _newest(folder: Path, pattern: str) -> int | None:
    if not folder.is_dir():
        return None
    matches = [re.fullmatch(pattern, path.name) for path in folder.iterdir()]
    return max((int(match[1]) for match in matches if match), default=None)
