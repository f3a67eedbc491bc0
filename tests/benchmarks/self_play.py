"""What self-play gives and takes, by generator: proposals, accepted tasks, refusals by check, CPU time, memory.

    python tests/benchmarks/self_play.py [--accepted 200] [--generators NAME ...] [--documents FOLDER]
        [--memory 10000 | --candidates 300 | --clock 60]

Every generator plays with its oracle, and with a solver that slips at one act in twenty and guesses one task in ten. CPU time is
that of the process without the sandboxes that it starts; time on the clock has both. With `--memory`, the first generator plays so
many tasks instead, and the largest memory so far is printed on the way. With `--candidates`, the first generator plays so many
proposals with solvers that slip more and more, and 1, 4 and 8 candidates at each task. With `--clock`, two processes play each
generator side by side for so many seconds, and the accepted tasks of both are counted. `--documents` are for `tool_subgraphs`.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

from polymath.runtime.knowledge.branches import attempts
from polymath.runtime.knowledge.generators.registry import GENERATORS, make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.player import Bounds, Player
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, Report, rank, self_play

SOLVERS = {"oracle": Roles(), "imperfect": Roles(slip_rate=0.05, guess_rate=0.1)}
SETTINGS: dict[str, dict[str, object]] = {}  # by generator, where not the default ones
SLIPS = (0.05, 0.1, 0.2)
CANDIDATES = (1, 4, 8)


def main() -> None:
    """Play and print a JSON line for each generator and solver."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--accepted", type=int, default=200)
    parser.add_argument("--generators", nargs="+", choices=sorted(GENERATORS), default=sorted(GENERATORS))
    parser.add_argument("--documents")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--candidates", type=int)
    parser.add_argument("--clock", type=float)
    options = parser.parse_args()
    if options.documents:
        SETTINGS["tool_subgraphs"] = {"documents": options.documents}
    if options.candidates:
        for slip in SLIPS:
            for candidates in CANDIDATES:
                print(json.dumps(best_of(options.generators[0], slip, candidates, options.candidates)), flush=True)
        return
    if options.clock:
        for name in options.generators:
            print(json.dumps(side_by_side(name, options.clock)), flush=True)
        return
    if options.memory:
        play(options.generators[0], "oracle", options.memory, on_progress=show_memory)
        return
    for name in options.generators:
        for solver in SOLVERS:
            print(json.dumps(play(name, solver, options.accepted)), flush=True)


def play(name: str, solver: str, accepted: int, on_progress: object = lambda report: None) -> dict[str, object]:
    """One run in a graph of its own."""
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder, "graph.sqlite")) as store:
        generator = make_generator(name, SETTINGS.get(name, {}), store)
        start, began = cpu_seconds(), time.monotonic()
        player = Player(Bounds(tool_seconds=300.0))
        report = self_play(generator, SOLVERS[solver], Goal(accepted=accepted, rounds=1), player, on_progress)
        seconds, clock = cpu_seconds() - start, time.monotonic() - began
    return {
        "generator": name,
        "solver": solver,
        **{
            key: value
            for key, value in report.as_json().items()
            if key in ("proposed", "accepted", "attempts", "outcomes", "refused")
        },
        "cpu_seconds_a_task": round(seconds / accepted, 4),
        "seconds_a_task": round(clock / accepted, 4),
    }


def best_of(name: str, slip: float, candidates: int, proposals: int) -> dict[str, object]:
    """What the best of several candidates at each task is worth. The first candidates are the same, however many there are."""
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder, "graph.sqlite")) as store:
        generator = make_generator(name, SETTINGS.get(name, {}), store)
        goal = Goal(accepted=proposals, attempts=candidates, patience=1, rounds=1)
        report = self_play(generator, Roles(slip_rate=slip), goal)
        best: dict[str, tuple[float, float, int]] = {}
        for record in attempts(store):
            best[record.task.key] = max(best.get(record.task.key, (0.0, 0.0, -1000)), rank(record))
    outcome, steps, length = (statistics.mean(values) for values in zip(*best.values(), strict=True))
    drawn = report.proposed - report.outcomes["nothing drawn"] - report.outcomes["known"]
    return {
        "generator": name,
        "slip_rate": slip,
        "candidates": candidates,
        "drawn": drawn,
        "accepted": round(report.accepted / drawn, 3),
        "outcome_of_best": round(outcome, 3),
        "right_steps_of_best": round(steps, 3),
        "steps_of_best": round(-length, 2),
    }


def side_by_side(name: str, seconds: float) -> dict[str, object]:
    """Accepted tasks of two processes by the clock, each with the imperfect solver in a graph and with a seed of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        counts = pool.starmap(play_until, [(name, SETTINGS.get(name, {}), seed, seconds) for seed in (0, 1)])
    accepted = sum(count for count, _ in counts)
    spent = max(clock for _, clock in counts)
    return {"generator": name, "accepted": accepted, "seconds": round(spent, 1), "an_hour": round(accepted / spent * 3600)}


class _Over(Exception):
    """The time is up."""


def play_until(name: str, settings: dict[str, object], seed: int, seconds: float) -> tuple[int, float]:
    """Accepted tasks, and the seconds they took, from a ready generator to the last committed proposal in time."""
    found = (0, 0.0)
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder, "graph.sqlite")) as store:
        generator = make_generator(name, settings, store)
        began = time.monotonic()

        def on_progress(report: Report) -> None:
            nonlocal found
            found = (report.accepted, time.monotonic() - began)
            if found[1] >= seconds:
                raise _Over

        with contextlib.suppress(_Over):
            self_play(generator, SOLVERS["imperfect"], Goal(accepted=10**9, seed=seed, rounds=1), Player(Bounds()), on_progress)
    return found


def show_memory(report: Report) -> None:
    """Print the largest memory so far, every thousand accepted tasks."""
    if report.accepted % 1000 == 0 and report.outcomes["accepted"] == report.accepted:
        print(json.dumps({"accepted": report.accepted, "proposed": report.proposed, "peak_mib": peak_mib()}), flush=True)


def peak_mib() -> int:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def cpu_seconds() -> float:
    """Of this process."""
    return time.process_time()


if __name__ == "__main__":
    main()
