"""How much a job computes: tokens of a step and how many steps, from its settings in the plan alone.

Lengths of rollouts are not known before they are sampled; every one is counted at its domain's limit, so these are upper bounds.
How many tasks self-play refuses is not known either: one episode is counted for each that is wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...specs import model as language
from ...specs.build import from_json
from ...specs.distillation import Distill
from ..losses import is_scored
from ..plan import Job, Mesh
from .quantity import Quantity


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One step of a job, or one episode of an evaluation, and how many there are."""

    tokens: Quantity  # of a step
    trained: bool  # whether they are trained on
    written_tokens: float = 0  # of them, those that the model generates at most
    rollouts: int = 0
    scored: int = 0  # times that the tokens are scored by another model
    document_tokens: float  # length of a document
    context_tokens: int  # longest sequence
    steps: Quantity | None  # None where only the data says


def work_of(job: Job, rows: Mapping[str, Quantity]) -> Work | None:
    """The work of a job that meets a model. `rows` are packed rows of an epoch by job id, where a lock tells them."""
    stage, domains = stage_of(job), _limits(job)
    mesh = job.roles["trainer"].mesh
    if isinstance(stage, language.Sft):
        assert mesh is not None
        return _training(stage, rows.get(job.id))
    if isinstance(stage, language.GrpoPhase):
        assert mesh is not None
        count = stage.prompts * stage.samples
        return _on_policy(stage, mesh, domains, count, f"{stage.prompts} prompts x {stage.samples}", 1 if stage.reference_kl else 0)
    if isinstance(stage, Distill):
        assert mesh is not None
        each = stage.prompts_per_step.per_domain
        return _on_policy(stage, mesh, domains, each * len(domains), f"{each} prompts x {len(domains)} domains", is_scored(stage))
    if isinstance(stage, language.Evaluate):
        return _episodes(stage.episodes, domains)
    if job.kind == "synthesize" and any(name.startswith("model.") for name in job.inputs):
        (domain,) = (from_json(language.Domain, one) for one in job.settings["domains"].values())
        return _episodes(domain.trajectories[0].synthesize or 0, domains)
    return None


def stage_of(job: Job) -> Any:
    """The stage block of a job, as an object; None of jobs without one."""
    if "stage" not in job.settings:
        return None
    return from_json(getattr(language, job.settings["stage_type"]), job.settings["stage"])


def _limits(job: Job) -> list[language.Limits]:
    domains = cast(Mapping[str, Any], job.settings.get("domains", {}))
    limits = [from_json(language.Domain, domain).limits for domain in domains.values()]
    return [one for one in limits if one is not None]


def _training(stage: language.Sft, rows: Quantity | None) -> Work:
    tokens = Quantity(
        name="tokens of a step",
        value=stage.batch_sequences * stage.sequence_tokens,
        unit="tokens",
        formula="B x L: rows of a step, all their positions",
        inputs={"B": stage.batch_sequences, "L": stage.sequence_tokens},
    )
    steps = None
    if stage.steps is not None:
        steps = Quantity(name="steps", value=stage.steps, unit="steps", formula="as the spec says")
    elif rows is not None and stage.epochs is not None:
        steps = Quantity(
            name="steps",
            value=max(1, round(stage.epochs * rows.value / stage.batch_sequences)),
            unit="steps",
            formula="e x R / B, R = " + rows.formula,
            inputs={"e": stage.epochs, "B": stage.batch_sequences, "R": rows.value, **rows.inputs},
        )
    return Work(
        tokens=tokens, trained=True, document_tokens=stage.sequence_tokens, context_tokens=stage.sequence_tokens, steps=steps
    )


def _on_policy(
    stage: language.GrpoPhase | Distill, mesh: Mesh, limits: list[language.Limits], count: int, shown: str, scored: int
) -> Work:
    longest = [one.context_tokens for one in limits]
    mean = sum(longest) / len(longest)
    written = sum(min(one.context_tokens, one.turns * one.response_tokens) for one in limits) / len(limits)
    rows = -(-count * mean // stage.sequence_tokens)
    unit = mesh.data_parallel * mesh.micro_batch
    padded = -(-rows // unit) * unit
    tokens = Quantity(
        name="tokens of a step",
        value=padded * stage.sequence_tokens,
        unit="tokens",
        formula=f"R x L: n = {shown} rollouts of d tokens at most, packed into R rows, a multiple of u",
        inputs={"R": padded, "L": stage.sequence_tokens, "n": count, "d": mean, "u": unit},
    )
    return Work(
        tokens=tokens,
        trained=True,
        written_tokens=count * written,
        rollouts=count,
        scored=scored,
        document_tokens=mean,
        context_tokens=max(longest),
        steps=Quantity(name="steps", value=stage.steps, unit="steps", formula="as the spec says"),
    )


def _episodes(each: int, limits: list[language.Limits]) -> Work | None:
    """So many episodes in each domain, and no training."""
    if not limits:
        return None
    episodes = each * len(limits)
    longest = sum(one.context_tokens for one in limits) / len(limits)
    written = sum(min(one.context_tokens, one.turns * one.response_tokens) for one in limits) / len(limits)
    tokens = Quantity(
        name="tokens",
        value=episodes * longest,
        unit="tokens",
        formula="E x D x d: episodes in each of D domains, of d tokens at most",
        inputs={"E": each, "D": len(limits), "d": longest},
    )
    return Work(
        tokens=tokens,
        trained=False,
        written_tokens=episodes * written,
        rollouts=episodes,
        document_tokens=longest,
        context_tokens=max(one.context_tokens for one in limits),
        steps=Quantity(name="steps", value=1, unit="steps", formula="all episodes"),
    )
