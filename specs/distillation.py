"""The language of distillation: who plays, what the loss is, and what is watched.

Source: Agents-A1 (arXiv 2606.30616), section 6, for the defaults; the other values are the methods of its neighbours, which
docs/distillation.md names.
"""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from dataclasses import dataclass
from typing import Literal

from .alarms import Alarms, Diagnostics, skips_updates
from .fields import Identity, spec_field
from .training import Optimization, Sampling

LABEL = Identity.LABEL


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptsPerStep:
    """How many prompts a distillation step draws."""

    per_domain: int = spec_field("Prompts of each domain in every step.", unit="prompts", minimum=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """The salient vocabulary that the loss is computed on."""

    source: Literal["teacher", "full"] = spec_field(
        "`teacher`: the teacher's most likely tokens. `full`: every token that the assistant may write; the ledger then holds the "
        "teacher's whole distribution at every written token.",
        default="teacher",
    )
    top_k: int | None = spec_field(
        "Tokens in the support of source `teacher`, which needs it.",
        default=None,
        unit="tokens",
        minimum=2,
        limit_reason="renormalised on one token, student and teacher are both 1 and the loss is always zero",
    )
    renormalize: bool = spec_field(
        "Whether student and teacher are renormalised on the support. `false` is refused: an unnormalised reverse KL is least "
        "where the student moved most of its mass off the support; `loss.tail: bucket` counts the rest.",
        default=True,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillLoss:
    """Salient vocabulary alignment (report section 6.1): reverse KL on the teacher's renormalised top-k. Its neighbours are other
    values."""

    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = spec_field(
        "`reverse_kl`: KL(student || teacher) on the support. `forward_kl`: KL(teacher || student). `jsd`: Jensen-Shannon, the "
        "mean of both KLs to their even mixture.",
        default="reverse_kl",
    )
    support: Support = spec_field("The salient vocabulary.")
    tail: Literal["none", "bucket"] = spec_field(
        "What becomes of the mass off the support: `none` renormalises without it; `bucket` adds one bin that holds the rest of "
        "both sides, which needs the student's log-sum-exp over the whole vocabulary.",
        default="none",
    )
    normalize: Literal["domain", "sample", "token"] = spec_field(
        "`domain`: mean per sample, then per domain, then over active domains. `sample`: mean per sample, then over all samples. "
        "`token`: mean over all written tokens.",
        default="domain",
    )
    estimator: Literal["exact", "sampled"] = spec_field(
        "`exact` sums over the support; `sampled` looks at the written token only, with `support: {source: full}`. It must come "
        "from the distribution that the divergence is a mean under: `reverse_kl` wants `rollouts: student` (policy gradient), "
        "`forward_kl` wants `rollouts: teacher` (cross-entropy).",
        default="exact",
    )
    importance: tuple[float, float] = spec_field(
        "Of the policy gradient: a token whose probability under the student over that under the engine that wrote it lies outside "
        "counts nothing; one inside is weighted with that ratio.",
        default=(0.5, 2.0),
        minimum=0,
    )
    coverage_positions: int = spec_field(
        "Most tokens per step, over all ranks, at which coverage, overlap, entropy and the gap between engine and trainer are "
        "measured; they need the logits of the whole vocabulary. "
        "1,024 place the 5 % quantile within about 1.4 points of rank.",
        default=1024,
        minimum=1,
        unit="tokens",
        identity=LABEL,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill(Optimization):
    """Stage 3: multi-teacher domain-routed on-policy distillation (report section 6)."""

    start: Literal["sft"] = spec_field("What the student starts from.", default="sft", key="from")
    steps: int = spec_field("Optimizer steps.", minimum=1)
    rollouts: Literal["student", "teacher"] = spec_field(
        "Who writes the trajectories. `teacher` is off-policy: each domain's teacher plays its prompts, and scores them too.",
        default="student",
    )
    prompts_per_step: PromptsPerStep = spec_field("Prompts drawn per step.")
    sampling: Sampling = spec_field("How whoever writes is sampled.", default_factory=lambda: Sampling())
    max_policy_lag: Literal[0, 1] = spec_field(
        "Steps that a rollout's policy may be behind. `1`: the next step's episodes are played and scored while this step trains, "
        "by the weights before it.",
        default=0,
    )
    loss: DistillLoss = spec_field("The loss.")
    alarms: Alarms = spec_field("Alarms.", default_factory=lambda: Alarms(), identity=LABEL, numerics_when=skips_updates)
    diagnostics: Diagnostics = spec_field(
        "What is measured beside the loss, now and then.", default_factory=lambda: Diagnostics(), identity=LABEL
    )
