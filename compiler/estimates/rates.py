"""How fast devices really are: an assumed share of their peak, or what a run measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

from ...specs.diagnostics import ExitCode, UserError
from ...specs.hardware import ACCELERATORS

MEGATRON_BRIDGE = "docs.nvidia.com/nemo/megatron-bridge, MoE Hardware Configuration Reference"


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """A share of the peak, and who says so."""

    share: float
    source: str


ASSUMED: Mapping[str, Efficiency] = {
    "a100": Efficiency(share=0.2, source="assumed as of Hopper; no figure for sparse experts was found"),
    "h100": Efficiency(share=0.2, source=f"{MEGATRON_BRIDGE}: Qwen3 30B in the low 200s of 989 TFLOP/s, with tuned dispatchers"),
    "h200": Efficiency(share=0.2, source=f"{MEGATRON_BRIDGE}: as H100, whose processor it has"),
    "b200": Efficiency(share=0.15, source=f"{MEGATRON_BRIDGE}: DeepSeek-V3 in the mid-teens of percent"),
}
BANDWIDTH_SHARE = 0.5  # of the memory's peak while tokens are generated (ours)
TRAINING_KINDS: tuple[str, ...] = ("sft", "grpo", "distill")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """FLOP/s that one device reaches, by kind of job. Measured rates hold for whole steps: with their rollouts and scores."""

    accelerator: str
    measured: Mapping[str, float] = field(default_factory=dict[str, float])
    measured_in: str | None = None

    def of(self, kind: str) -> float | None:
        """FLOP/s of one device; None where neither a run nor a data sheet says."""
        if self.measures(kind):
            return self.measured[self._like(kind)]
        peak, assumed = ACCELERATORS[self.accelerator].bfloat16_tflops, ASSUMED.get(self.accelerator)
        return None if peak is None or assumed is None else peak * 1e12 * assumed.share

    def measures(self, kind: str) -> bool:
        """Whether a run says how fast jobs of a kind are."""
        return self._like(kind) in self.measured

    def _like(self, kind: str) -> str:
        """Evaluations and self-play act, as on-policy steps do."""
        acts = kind in ("evaluate", "synthesize")
        return next((one for one in ("grpo", "distill") if one in self.measured), kind) if acts else kind

    def described(self, kind: str) -> str:
        """Where the rate comes from."""
        peak = ACCELERATORS[self.accelerator].bfloat16_tflops
        if self.measures(kind):
            rate = self.measured[self._like(kind)]
            share = f" is {rate / peak / 1e12:.1%} of the peak" if peak else ""
            return f"measured in {self.measured_in}: {rate:.4g} FLOP/s{share}"
        assumed = ASSUMED.get(self.accelerator)
        if assumed is None:
            return "unknown: measure a run with --calibrate"
        return f"assumed: {assumed.share:.0%} of {peak:g} TFLOP/s ({assumed.source})"


def seconds_per_step(job_folder: Path) -> float | None:
    """The median of a job's steps; the first, which warms up, does not count where there are others.

    Raises:
        UserError: metrics.jsonl is damaged before its last line.
    """
    path = job_folder / "metrics.jsonl"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[float] = []
    for number, line in enumerate(lines, 1):
        try:
            row = cast(dict[str, Any], json.loads(line))
            found.append(float(row["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a kill cut it short
                break
            raise UserError(f"{path}, line {number}: not a step's metrics ({error})", exit_code=ExitCode.USAGE) from error
    return median(found[1:] or found) if found else None
