"""What is watched during distillation: what each number means, and what to do where it is bad.

Alarms and the report's page say the same about a number because both read it here. `docs/diagnostics.md` says more.
"""

from dataclasses import dataclass

UPDATE_SKIPPED = "update_skipped"  # the metric by which a stage keeps a step from moving weights
TRAINED_TOKENS, TRAINED_SAMPLES = "trained_tokens", "trained_samples"


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitor:
    """A number of every domain, in `metrics.jsonl` as `<metric>.<domain>`."""

    metric: str
    title: str
    means: str
    remedy: str
    alarm: str | None = None  # its name under `student.distill.alarms`
    first_step_only: bool = False  # the alarm's
    is_share: bool = False  # between 0 and 1


MONITORS = (
    Monitor(
        metric="kl",
        title="KL to the teacher, nats per token",
        means="How far the student is from its domain's teacher on the support; it should fall, fastest at first.",
        remedy="A high first value means that this teacher is a stranger: fork it from the student's SFT checkpoint.",
        alarm="initial_kl",
        first_step_only=True,
    ),
    Monitor(
        metric="coverage_mean",
        title="coverage, mean",
        means="The student's mass on the teacher's support: the part of the student that the loss sees.",
        remedy="Where it sinks, raise `support.top_k` or lower the learning rate.",
        is_share=True,
    ),
    Monitor(
        metric="coverage_p05",
        title="coverage, 5 % quantile",
        means="One token in twenty has less coverage than this; it sinks before the mean does.",
        remedy="Start the teachers from the student's SFT checkpoint, raise `support.top_k`, or lower the learning rate.",
        alarm="coverage_p05",
        is_share=True,
    ),
    Monitor(
        metric="top_k_overlap",
        title="overlap of student's and teacher's top k",
        means="Share of the teacher's support that is in the student's own top k; it should rise.",
        remedy="Where it falls, the student finds other words than its teacher: check the routing, and lower the learning rate.",
        alarm="top_k_overlap",
        is_share=True,
    ),
    Monitor(
        metric="entropy",
        title="entropy of the student, nats",
        means="How undecided the student is; near 0 it samples the same text again and again, and learns nothing new.",
        remedy="Where it collapses, raise `sampling.temperature` or lower the learning rate; where it climbs, look at coverage.",
        alarm="entropy",
    ),
    Monitor(
        metric="logprob_gap",
        title="gap of engine and trainer, mean nats",
        means="Difference of the engine's and the trainer's log-probability of a written token; rounding alone should make it.",
        remedy="A gap means that rollouts are another policy's: check the weights' sync, the precisions and the chat template.",
        alarm="logprob_gap",
    ),
    Monitor(
        metric="outside_importance",
        title="tokens outside the importance bounds",
        means="Share of the written tokens that the policy gradient leaves out, because engine and trainer differ too much.",
        remedy="Where it grows, look at the gap of engine and trainer first; `importance` widens the bounds.",
        is_share=True,
    ),
    Monitor(
        metric="routing_agreement",
        title="experts chosen alike",
        means="Share of experts that engine and trainer choose alike for the same token of the same weights.",
        remedy="Where it is low, log-probabilities of rollouts cannot be trusted: compute engine and trainer in one precision.",
        alarm="routing_agreement",
        is_share=True,
    ),
    Monitor(
        metric="outcome_mean",
        title="outcome of rollouts",
        means="Share of the rollouts that solved their task, as their world says; not optimised, but it should rise.",
        remedy="Where it falls while the KL falls too, the teacher is no good on what the student asks it.",
        is_share=True,
    ),
    Monitor(
        metric="reward_mean",
        title="reward of rollouts",
        means="The domain's composed reward; not optimised.",
        remedy="Where it falls and the outcome does not, look at the terms for format, length and repetition.",
    ),
    Monitor(
        metric="written_mean",
        title="length of a rollout, mean tokens written",
        means="How much the student writes in an episode.",
        remedy="Where it grows without end, the student has stopped ending its turns: check that end-of-turn is a valid id.",
    ),
    Monitor(
        metric="written_max",
        title="length of a rollout, longest",
        means="The longest rollout of the step, in tokens written.",
        remedy="Where it sticks to the limit, raise the domain's `limits`, or find out why episodes do not end.",
    ),
    Monitor(
        metric="truncated",
        title="rollouts cut off by a limit",
        means="Share of the rollouts that hit a limit of their domain; their beginnings are trained on.",
        remedy="Where it is high, raise the domain's `limits`: no teacher ever sees how these episodes would end.",
        alarm="truncated",
        is_share=True,
    ),
)
MONITOR_OF_ALARM = {one.alarm: one for one in MONITORS if one.alarm is not None}
