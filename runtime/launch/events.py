"""The event log of a run: one JSON line per thing that happened, appended and never rewritten.

A launch that is killed may leave half a line; readers skip it and the next writer starts on a fresh line.
"""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


class EventLog:
    """Appends to `events.jsonl` of a run."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / EVENTS
        if self.path.exists() and self.path.stat().st_size and _last_byte(self.path) != b"\n":
            self._append("\n")

    def write(self, event: str, **facts: Any) -> None:
        """Append one event. `facts` are JSON values."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        self._append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def _append(self, text: str) -> None:
        # One write call, so that a reader never sees half a line unless the machine stops in the middle of it.
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def read_events(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The events of a run in order; `time` is a datetime. Half a line is skipped."""
    path = run_dir / EVENTS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            event["time"] = datetime.fromisoformat(event["time"])
        except (ValueError, KeyError, TypeError):
            continue
        yield event


def job_seconds(run_dir: Path, folders: Mapping[str, str], until: datetime | None = None) -> dict[str, float]:
    """Wall seconds that each job has taken over all launches, its share of start-up included.

    `folders` are the jobs' folders by id. A run may see several plans, whose jobs of one id have folders of their own where they
    differ; only what went into these folders counts.

    A job that is still at work counts until `until`; where a launch was killed, what it did after its last event is not known
    and not counted.
    """
    seconds: dict[str, float] = {}
    current: tuple[str, datetime] | None = None
    last: datetime | None = None
    launched = folders
    for event in read_events(run_dir):
        if event["event"] == "launch":
            current, launched = None, {job["id"]: job["folder"] for job in event["jobs"]}
        if event["event"] == "job_started" and launched.get(event["job"]) == folders.get(event["job"]):
            current = (event["job"], event["time"])
        elif current and event["event"] in ("job_finished", "job_failed", "interrupted"):
            job, started = current
            taken = event.get("seconds", (event["time"] - started).total_seconds())
            seconds[job] = seconds.get(job, 0.0) + taken
            current = None
        last = event["time"]
    if current and until and last:
        job, started = current
        seconds[job] = seconds.get(job, 0.0) + max(0.0, (until - started).total_seconds())
    return seconds


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)
