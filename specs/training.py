"""What training stages have in common: the size of a step, AdamW and its schedule, and how rollouts are sampled."""

from dataclasses import dataclass
from typing import Literal

from .fields import spec_field


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimization:
    """What every training stage sets: length of a row, size of a step, AdamW and its schedule."""

    sequence_tokens: int = spec_field("Length of a packed row.", unit="tokens", minimum=8)
    learning_rate: float = spec_field(
        "Peak learning rate.",
        exclusive_minimum=0,
        maximum=1,
        limit_reason="a step moves a weight by about this much, such as 1e-5; is a minus missing in the exponent?",
        examples=(1e-5,),
    )
    schedule: Literal["cosine", "linear", "constant"] = spec_field("Decay after the warm-up.", default="cosine")
    final_lr_fraction: float = spec_field("Share of the peak that the schedule ends at.", default=0.0, minimum=0, maximum=1)
    warmup: float = spec_field(
        "Share of the steps that warm up.",
        default=0.05,
        minimum=0,
        maximum=1,
        limit_reason="a share of the steps, not their number: 0.05 of 200 steps are 10",
    )
    weight_decay: float = spec_field("AdamW weight decay.", default=0.1, minimum=0)
    betas: tuple[float, float] = spec_field(
        "AdamW betas (the report states none).", default=(0.9, 0.95), minimum=0, exclusive_maximum=1
    )
    clip_norm: float = spec_field("Largest global gradient norm (the report states none).", default=1.0, exclusive_minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How rollouts are sampled."""

    temperature: float = spec_field("Softmax temperature; 0 is greedy.", default=1.0, minimum=0)
    top_p: float = spec_field("Nucleus mass.", default=1.0, exclusive_minimum=0, maximum=1)
