"""`polymath sweep`: launches every row at every seed, and goes on where an earlier sweep stopped.

What it does: keeps up to `at_once` launches at work, at most one per seed (and point), because its rows share a run directory and
so their SFT, teachers and evaluations; writes the results after every run; says how far it is.
What it does not do: decide what a job reuses; that is the launch's.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ..launch.process import Launcher
from ..launch.progress import PlainView, duration
from ..launch.run import POLL_SECONDS, StopRequests, launch_plan, stop_requests
from .figures import Figures
from .parts import SweepParts, SweepRun, point
from .show import PLOT, TABLE, gain_text, write_results

Say = Callable[[str], None]


def run_sweep(parts: SweepParts, *, at_once: int, again: str, say: Say = print, launcher: Launcher | None = None) -> int:
    """Run what is left of a sweep. Returns 0, or 7 where it was stopped and can go on.

    Args:
        at_once: launches at work at the same time.
        again: the command that goes on.
        say: takes a line for people.
        launcher: what starts processes; by default torchrun on this machine.

    Raises:
        UserError: 6 where a run failed; the others were run all the same.
    """
    return _Sweep(parts, at_once, again, say, launcher).run()


class _Sweep:
    """One sweep at work, from what is finished to its exit code."""

    def __init__(self, parts: SweepParts, at_once: int, again: str, say: Say, launcher: Launcher | None) -> None:
        self.parts, self.at_once, self.again, self.say, self.launcher = parts, at_once, again, say, launcher
        self.figures = Figures(parts)
        self.stops = StopRequests()
        self.waiting = [run for run in parts.runs if not run.is_finished()]
        self.started: dict[Future[int], tuple[SweepRun, float]] = {}
        self.taken: dict[str, float] = {}  # seconds by row, of the last run
        self.failed: dict[str, UserError] = {}

    def run(self) -> int:
        total, finished = len(self.parts.runs), len(self.parts.runs) - len(self.waiting)
        if finished:
            self.say(f"{finished} of {total} runs finished earlier")
        self._write()
        with ExitStack() as stack:
            self.stops = stack.enter_context(stop_requests())
            pool = stack.enter_context(ThreadPoolExecutor(self.at_once))
            try:
                while self._start_more(pool) or self.started:
                    self._take(wait(self.started, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done)
            except BaseException:
                self.stops.count += 1  # whatever is at work stops at its next step, for the pool waits for it
                raise
        if self.stops.count:
            self.say(f"stopped with {len(self.waiting)} of {total} runs to do\nto go on: {self.again}")
            return ExitCode.INTERRUPTED
        if self.failed:
            lines = [f"  {name}: {error.message.splitlines()[0]}" for name, error in self.failed.items()]
            raise UserError(
                "\n".join([f"{len(self.failed)} of {total} runs failed:", *lines]),
                exit_code=ExitCode.FAILED,
                fix=f"what was finished is kept: {self.again}",
            )
        self.say(f"finished: {self.parts.folder / TABLE} and {self.parts.folder / PLOT}")
        return ExitCode.OK

    def _start_more(self, pool: ThreadPoolExecutor) -> bool:
        """Start what may start; whether anything did."""
        before = len(self.started)
        for run in self.waiting:
            busy = {one.run_dir for one, _ in self.started.values()}
            if self.stops.count or len(self.started) == self.at_once:
                break
            if run.run_dir not in busy and run.name not in self.failed and run not in [one for one, _ in self.started.values()]:
                self.say(f"{run.name}: started; log: {self._log(run)}")
                self.started[pool.submit(self._launch, run)] = (run, time.monotonic())
        return len(self.started) > before

    def _launch(self, run: SweepRun) -> int:
        self._log(run).parent.mkdir(parents=True, exist_ok=True)
        with self._log(run).open("a", encoding="utf-8") as stream:
            view = PlainView(stream)
            return launch_plan(run.plan_folder, run_dir=run.run_dir, launcher=self.launcher, stops=self.stops, view=view)

    def _log(self, run: SweepRun) -> Path:
        where = "" if run.at is None else f".at-{point(run.at)}"
        return self.parts.folder / "logs" / f"{run.row}{where}.seed-{run.seed}.log"

    def _take(self, ended: set[Future[int]]) -> None:
        for future in ended:
            run, began = self.started.pop(future)
            try:
                code = future.result()
            except UserError as error:
                if not self.stops.count:
                    self.failed[run.name] = error
                    self.say(f"{run.name}: {error.render()}")
                continue
            if code == ExitCode.OK:
                self.waiting.remove(run)
                self.taken[run.row] = time.monotonic() - began
                figures = self._write()
                self.say(f"{run.name}: {self._result(run, figures)} in {duration(self.taken[run.row])}; {self._left()}")

    def _write(self) -> Mapping[str, Any]:
        figures = self.figures.gather()
        write_results(self.parts.folder, figures)
        return figures

    def _result(self, run: SweepRun, figures: Mapping[str, Any]) -> str:
        found = next(one for one in figures["runs"] if (one["row"], one.get("at"), one["seed"]) == (run.row, run.at, run.seed))
        return f"recovered gain {gain_text(found['recovered_gain'])}" if found["measured"] else "finished"

    def _left(self) -> str:
        """How much is left, and about how long it takes: as long as the row took at another seed, or as rows took so far."""
        left = [run for run in self.waiting if run.name not in self.failed]
        usual = sum(self.taken.values()) / len(self.taken)
        seconds = sum(self.taken.get(run.row, usual) for run in left) / min(self.at_once, len({run.run_dir for run in left}) or 1)
        return f"{len(left)} of {len(self.parts.runs)} left" + (f", about {duration(seconds)}" if left else "")
