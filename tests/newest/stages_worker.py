"""One rank of torchtitan's own trainer under a plan's settings: what the pipeline test starts with torchrun.

    torchrun ... stages_worker.py PLAN JOB START OUT

Trains three steps on made-up rows from the weights in START and writes what this rank saw to OUT/<rank>.json. Our own trainer
takes a batch as a whole and has no schedule of stages; this shows that the plan's settings are right for one that has.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from polymath.compiler.plan import read_plan
from polymath.runtime.trainer import bootstrap  # noqa: F401  (before torchtitan)
from polymath.runtime.trainer.build import base_config
from polymath.runtime.trainer.model import model_spec
from polymath.runtime.trainer.overrides import apply_overrides
from polymath.specs.machine import ExpertPrecision
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.trainer import Trainer

STEPS = 3


class CountingRows(BaseDataLoader):
    """Rows in which a token decides the next one; a row depends on its place in the global batch only."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        vocabulary: int = 256

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **kwargs: Any
    ) -> None:
        self.vocabulary, self.world, self.rank = config.vocabulary, dp_world_size, dp_rank
        self.length, self.rows = seq_len, local_batch_size

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            first = (number * self.world + self.rank) * self.rows
            start_B1 = torch.arange(first, first + self.rows)[:, None] * 17
            tokens_BL = (start_B1 + 3 * torch.arange(self.length + 1)) % self.vocabulary
            number += 1
            positions_BL = torch.arange(self.length).expand(self.rows, -1).contiguous()
            yield {"input": tokens_BL[:, :-1].contiguous(), "positions": positions_BL}, tokens_BL[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def main(plan: Path, job_id: str, start: Path, out: Path) -> None:
    job = read_plan(plan).job(job_id)
    ours = base_config()
    config = Trainer.Config(**{field.name: getattr(ours, field.name) for field in fields(Trainer.Config)})
    config.model_spec = model_spec(start, experts=ExpertPrecision(format="float32"))
    for layer in config.model_spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()  # whole rows: no documents to keep apart
    vocabulary = config.model_spec.model.vocab_size
    config.hf_assets_path, config.dump_folder = str(start), str(out)
    config.dataloader = CountingRows.Config(vocabulary=vocabulary)
    config.loss = CrossEntropyLoss.Config(global_vocab_size=vocabulary)
    config.metrics = MetricsProcessor.Config(log_freq=1, disable_color_printing=True)
    config.checkpoint = CheckpointManager.Config(enable=True, initial_load_path=str(start.resolve()), initial_load_in_hf=True)
    apply_overrides(config, job.titan)
    config.training.steps = STEPS
    trainer = config.build()
    seen: list[dict[str, float]] = []
    log = trainer.metrics_processor.log

    def remember(step: int, average: float, largest: float, grad_norm: float, **rest: Any) -> None:
        seen.append({"step": step, "loss": float(average), "grad_norm": float(grad_norm)})
        log(step, average, largest, grad_norm, **rest)

    trainer.metrics_processor.log = remember
    trainer.train()
    parallelism = trainer.config.parallelism
    told = {"backend": parallelism.spmd_backend, "pipeline": parallelism.pipeline_parallel_degree, "steps": seen}
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(told))
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
