"""The event log of a run: one JSON line per thing that happened, appended and never rewritten.

A launch that is killed may leave half a line; readers skip it and the next writer starts on a fresh line. The launcher writes what
becomes of jobs, and the first rank of a job the alarms that fire in it: each line is one append, so they never mix.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
TOLD_AGAIN_SECONDS = 30.0


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


class ServiceWaits:
    """Tells the event log that a service is waited for, and that it answers again. Safe to use from several threads."""

    def __init__(self, run_dir: Path, folder: str, service: str) -> None:
        """`folder` is the name of the job's folder."""
        self._events, self._facts = EventLog(run_dir), {"folder": folder, "service": service}
        self._told: float | None = None  # when
        self._lock = threading.Lock()

    def waiting(self, seconds: float, cause: str) -> None:
        """It has given no answer for so long."""
        with self._lock:
            now = time.monotonic()
            if self._told is None or now - self._told >= TOLD_AGAIN_SECONDS:
                self._told = now
                self._events.write("service_waits", **self._facts, seconds=round(seconds, 1), cause=cause)

    def answered(self) -> None:
        """It gives answers."""
        with self._lock:
            if self._told is not None:
                self._told = None
                self._events.write("service_answers", **self._facts)


def wait_lines(run_dir: Path, folder: str) -> list[str]:
    """One line per service that a job is waiting for, by the name of its folder."""
    waits: dict[str, dict[str, Any]] = {}
    for event in read_events(run_dir):
        if event["event"] == "launch":
            waits = {}
        elif event["event"] == "service_waits" and event["folder"] == folder:
            waits[event["service"]] = event
        elif event["event"] == "service_answers" and event["folder"] == folder:
            waits.pop(event["service"], None)
    now = datetime.now(UTC)
    return [
        f"waiting for {service}, {one['seconds'] + (now - one['time']).total_seconds():.0f} s: {one['cause']}"
        for service, one in waits.items()
    ]


def read_events(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The events of a run in order; `time` is a datetime. Half a line is skipped."""
    path = run_dir / EVENTS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
            event["time"] = datetime.fromisoformat(event["time"])
        except (ValueError, LookupError, TypeError):
            continue
        if "event" not in event:
            continue
        yield event


def alarms_of(run_dir: Path, folder: str) -> list[dict[str, Any]]:
    """The alarms that fired in a job, by the name of its folder, in order of steps.

    A step that was taken again after a kill counts as it went the last time.
    """
    fired = {
        (event["step"], event["alarm"], event["domain"]): event
        for event in read_events(run_dir)
        if event["event"] == "alarm" and event["folder"] == folder
    }
    return [fired[key] for key in sorted(fired)]


def alarm_lines(fired: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per alarm and domain."""
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in fired:
        together.setdefault((event["alarm"], event["domain"]), []).append(event)
    lines = []
    for (alarm, domain), events in together.items():
        first, last = events[0], events[-1]
        steps = f"step {first['step']}" if len(events) == 1 else f"{len(events)} steps, {first['step']} to {last['step']}"
        lines.append(
            f"alarm {alarm} ({last['action']}), domain {domain}: {last['side']} {last['threshold']:g} in {steps}; "
            f"{last['value']:.4g} in the last"
        )
    return lines


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
