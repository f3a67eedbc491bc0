"""torchtitan's metrics, and one JSON line per step beside them."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed
from torchtitan.components.metrics import MetricsProcessor

from ..files import write_text


class StepMetrics(MetricsProcessor):
    """Writes `metrics.jsonl`: step, loss, gradient norm, learning rate, tokens, seconds and what the stage measures.

    A resumed run first drops the lines of steps that it computes again.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        path: str = ""  # of metrics.jsonl

    def __init__(self, config: Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.path = Path(config.path)
        self.total_steps = 0
        self.stage_metrics: Callable[[], dict[str, float]] = dict
        self.step_started = time.perf_counter()
        self.tokens = 0
        self.first_line = True

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Log to torchtitan's loggers and to the file. Collective: the stage's metrics are summed over ranks."""
        measured = self.stage_metrics()
        # A rank whose rows are all padding has no tokens, and torchtitan's maximum of local means divides by their number.
        worst = global_max_loss if math.isfinite(global_max_loss) else global_avg_loss
        super().log(step, global_avg_loss, worst, grad_norm, extra_metrics={**(extra_metrics or {}), **measured})
        now = time.perf_counter()
        line = {
            "step": step,
            "steps": self.total_steps,
            "loss": global_avg_loss,
            "grad_norm": grad_norm,
            "learning_rate": next((value for key, value in (extra_metrics or {}).items() if key.startswith("lr")), None),
            "tokens": self.tokens,
            "seconds": round(now - self.step_started, 4),
            **measured,
        }
        self.step_started = now
        if torch.distributed.get_rank() == 0:
            if self.first_line:
                self._drop_lines_from(step)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        self.first_line = False

    def _drop_lines_from(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(text)["step"] < step:
                    kept.append(text)
            except (ValueError, KeyError):
                continue  # a line that a kill cut short
        write_text(self.path, "".join(f"{text}\n" for text in kept))  # a kill here must not cost the lines of earlier steps
