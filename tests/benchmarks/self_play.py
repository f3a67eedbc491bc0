"""What self-play gives and takes, by generator: proposals, accepted tasks, refusals by check, CPU time, memory.

    python tests/benchmarks/self_play.py [--accepted 200] [--generators NAME ...] [--memory 10000]

Every generator plays with its oracle, and with a solver that slips at one act in twenty and guesses one task in ten. CPU time is
that of the process without the sandboxes that it starts; time on the clock has both. With `--memory`, the first generator plays so
many tasks instead, and the largest memory so far is printed on the way.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from polymath.runtime.knowledge.generators.registry import GENERATORS, make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.player import Bounds, Player
from polymath.runtime.knowledge.roles import Roles
from polymath.runtime.knowledge.selfplay import Goal, Report, self_play

SOLVERS = {"oracle": Roles(), "imperfect": Roles(slip_rate=0.05, guess_rate=0.1)}


def main() -> None:
    """Play and print a JSON line for each generator and solver."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--accepted", type=int, default=200)
    parser.add_argument("--generators", nargs="+", choices=sorted(GENERATORS), default=sorted(GENERATORS))
    parser.add_argument("--memory", type=int)
    options = parser.parse_args()
    if options.memory:
        play(options.generators[0], "oracle", options.memory, on_progress=show_memory)
        return
    for name in options.generators:
        for solver in SOLVERS:
            print(json.dumps(play(name, solver, options.accepted)), flush=True)


def play(name: str, solver: str, accepted: int, on_progress: object = lambda report: None) -> dict[str, object]:
    """One run in a graph of its own."""
    with tempfile.TemporaryDirectory() as folder, GraphStore.create(Path(folder, "graph.sqlite")) as store:
        generator = make_generator(name, {}, store)
        start, began = cpu_seconds(), time.monotonic()
        player = Player(Bounds(tool_seconds=300.0))
        report = self_play(generator, SOLVERS[solver], Goal(accepted=accepted), player, on_progress)
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
