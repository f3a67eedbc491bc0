"""Held-out loss after a short SFT with experts in FP8, beside bfloat16 and float32: several seeds, every format on the same data.

    python tests/benchmarks/fp8_loss.py FOLDER [--start MODEL] [--seeds 7 8 9] [--steps 200] [--formats ...] [--episodes 200]

Each run is the small recipe's SFT cut to `--steps` steps, one rank, from random weights or from those of `--start`; runs of a seed
share their data and their first weights. What is measured is the model that comes out, in float32, on demonstrations of held-out
tasks that no run trained on: the mean loss of a written token. Runs of a format are compared with bfloat16's of the same seed;
float32's distance from it says how far apart runs come to lie when nothing but rounding differs. FOLDER keeps the runs: what is
finished there is not run again.
"""

import argparse
import json
import math
import os
import shutil
import statistics
from pathlib import Path

from polymath.compiler.plan import Plan, read_plan
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer_folder
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.worlds.demonstrations import demonstrate
from polymath.runtime.worlds.registry import make_world
from polymath.specs.build import from_json
from polymath.specs.model import Domain
from runs import compile_recipe, run_jobs

RECIPE = Path(__file__).parents[2] / "recipes" / "agents_a1_tiny_one_rank.yaml"
FORMATS = ("bfloat16", "float32", "fp8_blockwise", "fp8_current", "fp8_delayed")
START = ("import", "synthesize")
HELD_OUT_SEED = 20_000


def trained(folder: Path, start: Path | None, seed: int, steps: int, name: str, donor: Path | None) -> tuple[Plan, Path]:
    """The plan and the SFT job's folder of a finished run; data and first weights are another run's where there is one."""
    backend = ", backend: reference" if name.startswith("fp8") else ""
    settings = [f"seed={seed}", f"student.sft.steps={steps}", f"precision.experts={{format: {name}{backend}}}"]
    if start is not None:
        settings += [f"model.checkpoint={start.resolve()}", "model.shape=null"]
    compile_recipe(RECIPE, folder / "plan", settings)
    plan = read_plan(folder / "plan")
    jobs = folder / "run" / "jobs"
    if donor is not None:
        for job in START:
            of_donor = donor / "run" / "jobs" / read_plan(donor / "plan").job(job).folder
            shutil.copytree(of_donor, jobs / plan.job(job).folder, dirs_exist_ok=True)
    if not (jobs / plan.job("sft").folder / "DONE.json").exists():
        run_jobs(folder / "plan", (*START, "sft"), folder / "run")
    return plan, jobs / plan.job("sft").folder


def held_out_loss(plan: Plan, model: Path, episodes: int) -> float:
    """Mean over the domains' written tokens, in nats, of demonstrations of `episodes` held-out tasks of each domain."""
    tokenizer = load_tokenizer_folder(model)
    engine = TransformersEngine(
        model, tokenizer_digest=tokenizer.digest, pad_id=tokenizer.pad_id, invalid_ids=tokenizer.invalid_ids,
        num_tokens=len(tokenizer.hf),
    )  # fmt: skip
    total, count = 0.0, 0
    for block in plan.job("synthesize").settings["domains"].values():
        domain = from_json(Domain, block)
        world = make_world(domain.world or "", domain.settings)
        renderer, source = Renderer(tokenizer, world.tools), domain.trajectories[0]
        rendered = [
            renderer.render(
                demonstrate(world, task, seed=number, habit_rate=source.habit_rate, slip_rate=source.slip_rate).messages
            )
            for number, task in enumerate(world.tasks("heldout", episodes, HELD_OUT_SEED))
        ]
        scores = engine.score_tokens([one.ids for one in rendered])
        for one, logprobs in zip(rendered, scores, strict=True):
            of_written = [value for value, written in zip(logprobs.tolist(), one.written[1:], strict=True) if written]
            total, count = total - math.fsum(of_written), count + len(of_written)
    return total / count


def last_losses(job: Path, steps: int) -> float:
    """Mean training loss of the last steps."""
    lines = (job / "metrics.jsonl").read_text().splitlines()[-steps:]
    return statistics.fmean(json.loads(line)["loss"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS[1:]), choices=FORMATS[1:])
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gaps: dict[str, list[float]] = {name: [] for name in options.formats}
    for seed in options.seeds:
        held_out: dict[str, float] = {}
        donor: Path | None = None
        for name in ("bfloat16", *options.formats):
            folder = options.folder / f"{seed}-{name}"
            plan, job = trained(folder, options.start, seed, options.steps, name, donor)
            donor = donor or folder
            held_out[name] = held_out_loss(plan, job / "model", options.episodes)
            gap = held_out[name] / held_out["bfloat16"] - 1
            print(
                f"seed {seed}, {name}: held-out {held_out[name]:.4f} ({gap:+.2%}), last 20 steps {last_losses(job, 20):.4f}, "
                f"all steps {last_losses(job, options.steps):.4f}",
                flush=True,
            )
            if name != "bfloat16":
                gaps[name].append(gap)
    for name, found in gaps.items():
        spread = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        print(f"{name}: mean of {len(found)} seeds {statistics.fmean(found):+.2%}, standard error {spread:.2%}")


if __name__ == "__main__":
    main()
