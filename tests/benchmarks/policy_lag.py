"""What rollouts that are one step behind cost and save: `python tests/benchmarks/policy_lag.py`, with tests/ on the path.

Two domains of the small worlds, two embedded teachers, a student of 0.03 M parameters and AdamW; only the trainer is a stand-in.
Runs with and without lag alternate. Printed per run: median seconds of a step, the mean gap between the log-probabilities of who
played and of who trains, and the KL to the teachers over the last steps.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import pytest
import torch
from on_policy_runs import DISTILL, StubTrainer, distill_stage, make_run, save_model
from polymath.specs.distillation import PromptsPerStep

STEPS, WARM_UP, LAST, EPISODES = 40, 5, 10, 24


def run(folder: Path, models: dict[str, Path], lag: int, patch: pytest.MonkeyPatch) -> tuple[float, float, float]:
    """One run: seconds of a step, gap, KL."""
    trainer = StubTrainer(models["student"])
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
    context = make_run(folder, models, patch)
    prompts = PromptsPerStep(per_domain=EPISODES)
    stage = distill_stage(context, models, trainer, DISTILL, steps=STEPS, max_policy_lag=lag, prompts_per_step=prompts)
    seconds, gaps, divergences = [], [], []
    for step in range(1, STEPS + 1):
        began = time.perf_counter()
        _, metrics = trainer.loss(stage, stage.next_batch(step))
        optimizer.step()
        stage.finish_step()
        seconds.append(time.perf_counter() - began)
        gaps.append(mean(value for name, value in metrics.items() if name.startswith("logprob_gap.")))
        divergences.append(mean(value for name, value in metrics.items() if name.startswith("kl.")))
    return median(seconds[WARM_UP:]), mean(gaps[WARM_UP:]), mean(divergences[-LAST:])


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        models = {name: Path(place) / name for name in ("student", "a", "b")}
        for seed, folder in enumerate(models.values()):
            save_model(folder, seed)
        for turn in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
            for lag in (0, 1):
                found = run(Path(place) / f"{turn}-{lag}", models, lag, patch)
                print(f"lag {lag}: {found[0]:.3f} s/step, gap {found[1]:.2e}, KL {found[2]:.4f}", flush=True)


if __name__ == "__main__":
    main()
