"""How far the jobs are, read from the files they write, and shown: bars on a terminal, plain lines elsewhere."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from ...compiler.plan import Job
from ..jobs import ROLLOUT

METRICS, PROGRESS = "metrics.jsonl", "progress.json"
TAIL_BYTES = 65536
PLAIN_LINE_SECONDS = 10.0
STARTING = "starting"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    """How far one job is."""

    done: int
    total: int
    unit: str  # "steps", "episodes", ...
    loss: float | None = None
    rollout: str | None = None  # how far the episodes are that are being played

    def text(self) -> str:
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        rollout = "" if self.rollout is None else f"  {self.rollout}"
        return f"{self.done}/{self.total} {self.unit}{loss}{rollout}"


def read_progress(folder: Path) -> JobProgress | None:
    """The newest word of a job about itself: its last metrics line, else its progress file."""
    line, rollout = last_metrics(folder), _rollout(folder)
    if line is not None:
        return JobProgress(done=line["step"], total=line["steps"], unit="steps", loss=line.get("loss"), rollout=rollout)
    try:
        progress = json.loads((folder / PROGRESS).read_text())
        return JobProgress(done=progress["done"], total=progress["total"], unit=progress["unit"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _rollout(folder: Path) -> str | None:
    """Episodes, tokens and the share of each status of the batch that the first rank is playing."""
    try:
        found = json.loads((folder / ROLLOUT).read_text())
        shares = [f"{count / found['done']:.0%} {status.lower()}" for status, count in sorted(found["finished"].items())]
        return ", ".join([f"episode {found['done']}/{found['total']}", f"{found['tokens']:,} tokens", *shares])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError):
        return None


def last_metrics(folder: Path) -> dict[str, Any] | None:
    """The last whole line of `metrics.jsonl`."""
    try:
        with (folder / METRICS).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            tail = stream.read()
    except OSError:
        return None
    for line in reversed(tail.split(b"\n")[:-1]):  # what follows the last newline is half a line
        try:
            metrics = json.loads(line)
        except ValueError:
            continue
        if isinstance(metrics, dict) and {"step", "steps"} <= metrics.keys():
            return metrics
    return None


class ProgressView(Protocol):
    """Shows a group at work. `say` prints a line of text without breaking the display."""

    def say(self, text: str) -> None: ...
    def start(self, jobs: Sequence[Job]) -> None: ...
    def update(self, job: Job, progress: JobProgress | None) -> None: ...
    def finish(self, job: Job, seconds: float) -> None: ...
    def stop(self) -> None: ...


class PlainView:
    """One line per job at its start and its end, and every ten seconds between."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream  # by default stdout
        self._shown: dict[str, float] = {}
        self._rates = Rates()

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def start(self, jobs: Sequence[Job]) -> None:
        self._rates = Rates()

    def update(self, job: Job, progress: JobProgress | None) -> None:
        now = time.monotonic()
        if job.id not in self._shown:
            self.say(f"{job.id}: started")
            self._shown[job.id] = now
        if progress is None:
            return
        rate = self._rates.observe(job.id, progress.done, now)
        if now - self._shown[job.id] >= PLAIN_LINE_SECONDS:
            self._shown[job.id] = now
            self.say(f"{job.id}: {progress.text()}  {speed(rate, progress)}".rstrip())

    def finish(self, job: Job, seconds: float) -> None:
        self.say(f"{job.id}: finished in {duration(seconds)}")

    def stop(self) -> None:
        """Nothing is on the screen that would have to go."""


class BarView:
    """A progress bar per job, with steps, loss, speed, time left and time taken."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TextColumn("[dim]{task.fields[speed]}"),
            TextColumn("[dim]{task.fields[taken]}"),
        )
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._rates = Rates()
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def start(self, jobs: Sequence[Job]) -> None:
        self._rates = Rates()

    def update(self, job: Job, progress: JobProgress | None) -> None:
        now = time.monotonic()
        started = self._started.setdefault(job.id, now)
        fields = {"text": STARTING, "speed": "", "taken": duration(now - started)}
        if job.id not in self._tasks:
            self._tasks[job.id] = self._progress.add_task(f"{job.id:<24}", total=1, **fields)
        if progress is None:
            self._progress.update(self._tasks[job.id], **fields)
            return
        rate = self._rates.observe(job.id, progress.done, now)
        fields |= {"text": progress.text(), "speed": speed(rate, progress)}
        self._progress.update(self._tasks[job.id], completed=progress.done, total=max(1, progress.total), **fields)

    def finish(self, job: Job, seconds: float) -> None:
        task = next(one for one in self._progress.tasks if one.id == self._tasks[job.id])
        text = "" if task.fields["text"] == STARTING else task.fields["text"]
        self._progress.update(task.id, completed=task.total, text=text, speed="finished", taken=duration(seconds))

    def stop(self) -> None:
        self._progress.stop()


class Rates:
    """Units per second of each job since it was first seen in these processes, so that a resumed job is not flattered."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, float]] = {}

    def observe(self, job_id: str, done: int, now: float) -> float | None:
        """The rate; None until the job has moved."""
        first_done, first_time = self._first.setdefault(job_id, (done, now))
        return (done - first_done) / (now - first_time) if done > first_done and now > first_time else None


def make_view() -> ProgressView:
    """Bars on a terminal, lines elsewhere."""
    return BarView() if sys.stdout.isatty() else PlainView()


def speed(rate: float | None, progress: JobProgress) -> str:
    """How fast, and how long it still takes."""
    if not rate:
        return ""
    pace = f"{rate:.1f} {progress.unit}/s" if rate >= 0.1 else f"{1 / rate:.0f} s/{progress.unit.removesuffix('s')}"
    return f"{pace}, {duration(max(0, progress.total - progress.done) / rate)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
