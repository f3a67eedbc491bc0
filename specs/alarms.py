"""What is watched during distillation, and what speaks up: the blocks `alarms` and `diagnostics` of `student.distill`."""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from .fields import Identity, spec_field

LABEL = Identity.LABEL
Action = Literal["warn", "skip", "stop"]
ACTION = "`warn` goes on; `skip` goes on without this step's update, so no weight moves; `stop` ends the job before the update."


def skips_updates(value: Any) -> bool:
    """Whether an alarm, or any of a block of alarms, as plain data, keeps weights from moving."""
    if not isinstance(value, Mapping):
        return False
    alarm = cast(Mapping[str, Any], value)
    return alarm.get("action") == "skip" or any(skips_updates(one) for one in alarm.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class LowShareAlarm:
    """Speaks up where a share falls below a threshold."""

    below: float = spec_field("Threshold.", minimum=0, maximum=1)
    action: Action = spec_field(ACTION, default="warn")


@dataclass(frozen=True, kw_only=True, slots=True)
class HighShareAlarm:
    """Speaks up where a share rises above a threshold."""

    above: float = spec_field("Threshold.", minimum=0, maximum=1)
    action: Action = spec_field(ACTION, default="warn")


@dataclass(frozen=True, kw_only=True, slots=True)
class LowNatsAlarm:
    """Speaks up where an entropy falls below a threshold."""

    below: float = spec_field("Threshold.", minimum=0, unit="nats")
    action: Action = spec_field(ACTION, default="warn")


@dataclass(frozen=True, kw_only=True, slots=True)
class HighNatsAlarm:
    """Speaks up where a difference of log-probabilities rises above a threshold."""

    above: float = spec_field("Threshold.", minimum=0, unit="nats")
    action: Action = spec_field(ACTION, default="warn")


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialKlAlarm:
    """Speaks up at the first step, where a teacher is too far from the student to begin with."""

    above: float = spec_field("Threshold.", minimum=0, unit="nats")
    action: Literal["warn", "stop"] = spec_field(
        "`warn` goes on, `stop` ends the job before the first update. There is no `skip`: the teacher would be as far off later.",
        default="warn",
    )


def _alarm(doc: str) -> Any:
    # A threshold that only warns or stops changes no weight that comes out; one that skips updates does.
    return spec_field(doc, default=None, identity=LABEL, numerics_when=skips_updates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarms:
    """Monitors that speak up, each for every domain of its own. Whatever fires is a line of the run's `events.jsonl`."""

    initial_kl: InitialKlAlarm | None = _alarm("On the KL to the domain's teacher at the first step.")
    coverage_p05: LowShareAlarm | None = _alarm("On the 5 % quantile of coverage, the student's mass on the support.")
    top_k_overlap: LowShareAlarm | None = _alarm("On the share of the support that is in the student's own top k.")
    entropy: LowNatsAlarm | None = _alarm("On the student's entropy.")
    logprob_gap: HighNatsAlarm | None = _alarm(
        "On the mean difference between the engine's and the trainer's log-probability of a written token."
    )
    routing_agreement: LowShareAlarm | None = _alarm("On the share of experts that engine and trainer choose alike.")
    truncated: HighShareAlarm | None = _alarm("On the share of rollouts that a limit cut off.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnostics:
    """The routing agreement, which needs a forward pass of engine and trainer of its own."""

    every_steps: int = spec_field(
        "Steps from one measurement to the next; the first step is measured.", default=50, minimum=1, unit="steps"
    )
    samples_per_domain: int = spec_field("Rollouts of each domain that are measured.", default=1, minimum=1, unit="rollouts")
