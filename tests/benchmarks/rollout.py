"""Rollout tokens per second of the embedded engine, and the parts of a distillation step, at the end of a finished run.

    python tests/benchmarks/rollout.py RUN [--steps 40] [--skip 5] [--profile FILE]

RUN is the folder of a finished run whose distillation has one rank. Its distillation starts again in a scratch folder, from the
weights that it ended with, so that episodes are as long as a trained student's; nothing is written to RUN. Steps that warm up are
left out. Every part is timed from outside, by the CPU time of the process, which hardly depends on what else the machine does;
waiting for the disk is not counted. On one thread, on an idle machine, that is the time on the clock.
"""

import argparse
import contextlib
import cProfile
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from polymath.compiler.plan import read_plan, read_sources
from polymath.runtime.__main__ import DISTRIBUTED_DEFAULTS, os
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.jobs import Interrupted, JobContext
from polymath.runtime.ledger import Ledger
from polymath.runtime.stages import distill, on_policy
from polymath.runtime.stages.diagnostics import WatchedTokens
from polymath.runtime.trainer.build import start_distributed
from polymath.runtime.trainer.trainer import PolymathTrainer

seconds: dict[str, list[float]] = defaultdict(list)
counts: dict[str, list[int]] = defaultdict(list)


def timed(owner: Any, method: str, part: str) -> None:
    """From now on the calls of a method add to the current step's seconds of a part."""
    original: Callable[..., Any] = getattr(owner, method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[part][-1] += time.process_time() - started

    setattr(owner, method, wrapped)


PARTS = {
    "step": (PolymathTrainer, "train_step"),
    "making the batch": (distill.DistillStage, "next_batch"),
    "taking over the weights": (TransformersEngine, "load_weights"),
    "rollout": (on_policy.Actors, "play"),
    "generating": (TransformersEngine, "generate"),
    "scoring": (distill.DistillStage, "_score"),
    "ledger, writing": (Ledger, "write_part"),
    "ledger, publishing": (Ledger, "publish"),
    "ledger, reading": (Ledger, "read"),
    "watching": (WatchedTokens, "sums"),
    "packing": (on_policy.OnPolicyBatches, "pack"),
}


def measure(run: Path, steps: int, scratch: Path, profile: cProfile.Profile | None) -> None:
    """Run the first steps of the run's distillation again, in this process."""
    plan, sources = read_plan(run / "plan"), read_sources(run / "plan")
    job = plan.job("distill")
    assert job.roles["trainer"].devices == 1, "the run's distillation needs one rank: placement.distill.trainer.devices=1"
    (scratch / "jobs").mkdir()
    for folder in (run / "jobs").iterdir():
        if folder.name != job.folder:
            (scratch / "jobs" / folder.name).symlink_to(folder.resolve())
    context = JobContext(plan=plan, sources=sources, job=job, run_dir=scratch, rank=0, world_size=1, barrier=lambda: None)
    context.folder.mkdir()

    for part, (owner, method) in PARTS.items():
        timed(owner, method, part)
    original = PolymathTrainer.train_step

    def step(trainer: PolymathTrainer, data: Any) -> None:
        if len(seconds["step"]) == steps:
            if profile is not None:
                profile.disable()
            raise Interrupted
        for part in PARTS:
            seconds[part].append(0.0)
        if profile is not None:
            profile.enable()
        original(trainer, data)
        counts["episode tokens"].append(int(trainer.stage._metrics["rollout_tokens"]))
        counts["written tokens"].append(int(trainer.stage._metrics["written_tokens"]))

    PolymathTrainer.train_step = step
    # The student starts where the run's distillation ended.
    trained, untrained = run / "jobs" / job.folder / "model", JobContext.input_folder
    JobContext.input_folder = lambda self, name: trained if name == "model" else untrained(self, name)
    with contextlib.suppress(Interrupted):
        distill.run(context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--skip", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="write a cProfile of the steps")
    options = parser.parse_args()
    for name, value in DISTRIBUTED_DEFAULTS.items():
        os.environ.setdefault(name, value)
    profile = cProfile.Profile() if options.profile else None
    start_distributed()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        measure(options.run, options.steps, Path(scratch), profile)
    if profile is not None:
        profile.dump_stats(options.profile)

    medians = {part: statistics.median(values[options.skip :]) for part, values in seconds.items()}
    step = medians["step"]
    medians["the rest of the step: training"] = step - medians["making the batch"]
    for part, value in medians.items():
        print(f"{part:32} {value * 1e3:8.1f} ms  {value / step:6.1%}")
    written, tokens = (statistics.median(counts[name][options.skip :]) for name in ("written tokens", "episode tokens"))
    print(f"a step: {tokens:.0f} tokens of episodes, {written:.0f} written by the student")
    print(f"rollout: {written / medians['rollout']:,.0f} written tokens/s, {tokens / medians['rollout']:,.0f} episode tokens/s")
    print(json.dumps({"threads": torch.get_num_threads(), "load": [load_before, os.getloadavg()[0]], "steps": options.steps}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
