"""What distillation recovers with vLLM over HTTP, beside the embedded engine: the same SFT model, teachers and steps.

    python tests/benchmarks/engine_gain.py RUN FOLDER [--seeds 7 8 9] [--steps 40]

RUN is the folder of a finished run of `agents_a1_tiny_one_rank.yaml`; the jobs up to its teachers are taken over as they are. For
every seed the student is distilled twice, with the embedded engine and with six vLLM servers (one acts, one for each teacher), and
plays 1,000 held-out tasks of each domain on the embedded engine. Printed is the recovered gain of both with the 95 % interval over
tasks, which knows nothing of chance while training: that shows between seeds. FOLDER keeps what is finished.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path

from polymath.compiler.plan import Plan, read_plan
from polymath.runtime.report.statistics import Estimate, domain_gains, mean_recovered
from runs import compile_recipe, run_jobs

RECIPE = Path(__file__).parents[2] / "recipes" / "agents_a1_tiny_one_rank.yaml"
START = ("import", "synthesize", "sft")
HTTP = (
    "engines={rollout: vllm, scorer: vllm, transport: http}",
    "cluster.per_node=7",
    "placement.distill.rollout.devices=1",
    "placement.distill.scorer.devices=5",
    "placement.grpo.rollout.devices=1",
    "placement.evaluate.rollout.devices=1",
)


class Run:
    """A plan and its run, both in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan: Plan = read_plan(folder / "plan")

    @classmethod
    def compiled(cls, folder: Path, *settings: str) -> "Run":
        """A plan of the recipe with some settings."""
        compile_recipe(RECIPE, folder / "plan", settings)
        return cls(folder)

    def job(self, name: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / self.plan.job(name).folder

    def take(self, other: "Run", name: str) -> None:
        """A finished job of another run, as if it were this one's: the digest says who acts, which changes no weight here."""
        target = self.job(name)
        shutil.copytree(other.job(name), target, dirs_exist_ok=True)
        done = json.loads((target / "DONE.json").read_text())
        (target / "DONE.json").write_text(json.dumps({**done, "recipe_digest": self.plan.job(name).recipe_digest}))

    def launch(self, *jobs: str) -> float:
        """Run jobs that are not finished; seconds."""
        began = time.perf_counter()
        if not all((self.job(name) / "DONE.json").exists() for name in jobs):
            run_jobs(self.folder / "plan", jobs, self.folder)
        return time.perf_counter() - began

    def outcomes(self, job: str) -> dict[str, list[float]]:
        """Of an evaluation, by domain."""
        domains = json.loads((self.job(job) / "result.json").read_text())["domains"]
        return {name: scores["outcomes"] for name, scores in domains.items()}


def recovered(source: Run, scored: Run) -> Estimate:
    """The student's gain over SFT as a share of its teachers'."""
    routing: dict[str, str] = source.plan.job("distill").settings["routing"]
    sft, student = source.outcomes("evaluate.sft"), scored.outcomes("evaluate.student")
    teachers = {domain: source.outcomes(f"evaluate.{teacher}")[domain] for domain, teacher in routing.items()}
    return mean_recovered({name: domain_gains(sft[name], teachers[name], student[name], seed=0) for name in routing})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    source = Run(options.run)
    taken = [*START, *(name for name in (job.id for job in source.plan.jobs) if name.startswith("teachers."))]
    gains: dict[str, list[float]] = {"embedded": [], "http": []}
    for seed in options.seeds:
        shared = (f"seed={seed}", f"student.distill.steps={options.steps}", "evaluate.continued_sft=false")
        embedded = Run.compiled(options.folder / f"{seed}-embedded", *shared)
        http = Run.compiled(options.folder / f"{seed}-http", *shared, *HTTP)
        scored = Run.compiled(options.folder / f"{seed}-http-scored", *shared)
        for run in (embedded, http):
            for name in taken:
                run.take(source, name)
        seconds = {"embedded": embedded.launch("distill"), "http": http.launch("distill")}
        embedded.launch("evaluate.student")
        for name in START:
            scored.take(source, name)
        scored.take(http, "distill")
        scored.launch("evaluate.student")
        for name, run in (("embedded", embedded), ("http", scored)):
            gain = recovered(source, run)
            gains[name].append(gain.value)
            low, high = gain.interval
            print(
                f"seed {seed}, {name}: recovered gain {gain.value:.4f} [{low:.4f}, {high:.4f}], {seconds[name]:.0f} s", flush=True
            )
    for name, found in gains.items():
        print(f"{name}: mean of {len(found)} seeds {statistics.fmean(found):.4f}, from {min(found):.4f} to {max(found):.4f}")


if __name__ == "__main__":
    main()
