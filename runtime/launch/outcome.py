"""What became of a group: torchrun turns every worker's exit status into 1, so the workers' own outcome files decide."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...compiler.plan import Job
from ...specs.diagnostics import ExitCode
from ..jobs import TOLD_ELSEWHERE, is_done
from .decide import can_resume


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a group ended early."""

    job: Job
    exit_code: ExitCode
    message: str


def clear_outcomes(run_dir: Path, jobs: Sequence[Job]) -> None:
    """Remove what an earlier attempt left, so that it is not taken for this one's."""
    for job in jobs:
        for path in (run_dir / "jobs" / job.folder).glob("outcome.*.json"):
            path.unlink()


def find_failure(run_dir: Path, jobs: Sequence[Job], status: int, ended_by_user: bool) -> Failure | None:
    """The first unfinished job of a group that has ended, with its first failing rank's message; None where all finished."""
    job = next((job for job in jobs if not is_done(run_dir / "jobs" / job.folder, job)), None)
    if job is None:
        return None
    folder = run_dir / "jobs" / job.folder
    failing = sorted(
        (TOLD_ELSEWHERE in str(outcome["message"]), outcome["time"], outcome["rank"], outcome["exit_code"], outcome["message"])
        for outcome in map(_read, folder.glob("outcome.*.json"))
        if outcome is not None and outcome["exit_code"] != ExitCode.OK
    )
    if failing:
        # Ranks that fail later mostly fail because the first one left.
        *_, code, message = failing[0]
        return Failure(job=job, exit_code=ExitCode(code), message=message)
    if ended_by_user:
        return Failure(job=job, exit_code=ExitCode.INTERRUPTED, message="ended at once, as asked")
    if can_resume(folder):
        return Failure(job=job, exit_code=ExitCode.INTERRUPTED, message=f"its processes ended without a word (status {status})")
    return Failure(job=job, exit_code=ExitCode.FAILED, message=f"its processes ended without a word (status {status})")


def _read(path: Path) -> dict[str, object] | None:
    try:
        outcome = json.loads(path.read_text())
        return {
            "time": float(outcome.get("time", 0.0)),
            "rank": int(outcome["rank"]),
            "exit_code": int(outcome["exit_code"]),
            "message": str(outcome["message"]),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
