"""roles: what acts, scores and judges is there, has devices, and what the spec says of it has an effect."""

from collections.abc import Iterator

from ...specs.build import Path, Problem
from ...specs.hardware import ACCELERATORS
from ...specs.hints import suggest
from ...specs.machine import EnginePlacement, ExpertPrecision
from ...specs.model import GrpoPhase, Spec
from ...specs.worlds import BUILTIN_WORLDS, build_settings, locations_of
from ..compilation import Compilation, mistake
from ..experts import SCALED_FORMATS
from ..stages import played, stages

STATED_PROCESS_WEIGHT = 0.5
ROLES_OF = {
    "synthesize": ("rollout",),
    "grpo": ("rollout", "scorer"),
    "distill": ("rollout", "scorer"),
    "evaluate": ("rollout",),
}


def roles(compilation: Compilation) -> Compilation:
    """Collect every contradiction between engines, their devices, number formats and the stages that use them."""
    spec = compilation.spec
    if spec is None:
        return compilation
    return compilation.with_mistakes(
        *_check_software(spec),
        *_check_precision(spec, compilation),
        *_check_judge(spec),
        *_check_phases(spec),
        *_check_served(spec),
        *_check_engines(spec),
    )


def _check_software(spec: Spec) -> Iterator[Problem]:
    cluster = spec.cluster
    if cluster.software.cuda is not None and not ACCELERATORS[cluster.accelerator].is_gpu:
        path = ("cluster", "software", "cuda")
        yield mistake("E0303", path, f"a {cluster.accelerator} has no CUDA", "remove it", at_key=True)


def _check_precision(spec: Spec, compilation: Compilation) -> Iterator[Problem]:
    experts, path = spec.precision.experts, ("precision", "experts")
    if experts.format in SCALED_FORMATS and experts.backend is None:
        fix = "add `backend: te`, or `backend: reference` to check Transformer Engine by"
        yield mistake("E0331", path, f"`{experts.format}` needs a `backend`", fix, at_key=True)
    if experts.format not in SCALED_FORMATS and experts.backend is not None:
        detail = f"`{experts.format}` is computed by PyTorch alone"
        yield mistake("E0303", (*path, "backend"), detail, "remove it, or write `format: fp8_blockwise`", at_key=True)
    if experts.except_layers:
        yield from _check_except_layers(experts, (*path, "except_layers"), compilation)


def _check_except_layers(experts: ExpertPrecision, path: Path, compilation: Compilation) -> Iterator[Problem]:
    """The layers that stay in bfloat16 are layers of the model, and not all of them."""
    if experts.format not in SCALED_FORMATS:
        detail = f"no layer's experts are computed in FP8: `format` is `{experts.format}`"
        yield mistake("E0303", path, detail, "remove it, or write `format: fp8_blockwise`", at_key=True)
        return
    layers = compilation.dimensions.layers if compilation.dimensions is not None else None
    for position, layer in enumerate(experts.except_layers):
        if layers is not None and layer >= layers:
            yield mistake("E0205", (*path, position), f"the model has {layers} layers, counted from 0", f"at most {layers - 1}")
    if layers is not None and set(experts.except_layers) >= set(range(layers)):
        yield mistake("E0303", path, "it names every layer, so nothing is computed in FP8", "write `format: bfloat16`", at_key=True)


def judged(spec: Spec) -> list[tuple[str, str]]:
    """What a judge decides: the domains, each with the field of its reward that says so."""
    fields = ("outcome_by", "steps_by")
    return [(name, field) for name, domain in spec.domains.items() for field in fields if getattr(domain.reward, field) == "judge"]


def _check_judge(spec: Spec) -> Iterator[Problem]:
    asked = judged(spec)
    if spec.engines.judge is None:
        for name, field in asked:
            fix = "add `judge: {url_env: JUDGE_URL, model: ...}` to `engines`"
            yield mistake("E0332", ("domains", name, "reward", field), "there is no `engines.judge`", fix)
    elif not asked:
        fix = "write `outcome_by: judge` in a domain's `reward`, or remove it"
        yield mistake("E0303", ("engines", "judge"), "no domain's `reward` asks for a judge", fix, at_key=True)
    for name, domain in spec.domains.items():
        path, by_rubric = ("domains", name, "reward"), domain.reward.steps_by == "judge"
        if by_rubric and not domain.reward.rubric:
            fix = "add `rubric`: statements that hold of an episode whose steps are right"
            yield mistake("E0203", path, "`rubric` is missing: `steps_by: judge` scores by it", fix, at_key=True)
        elif domain.reward.rubric and not by_rubric:
            detail = "only a judge reads it"
            yield mistake("E0303", (*path, "rubric"), detail, "remove it, or write `steps_by: judge`", at_key=True)


def _check_served(spec: Spec) -> Iterator[Problem]:
    """A teacher that somebody serves exists, and scores in distillation."""
    path = ("engines", "teachers")
    routed = {rule.teacher for rule in spec.routing}
    for name in spec.engines.teachers:
        if name not in spec.teachers:
            guess = suggest(name, list(spec.teachers))
            fix = f"did you mean `{guess}`?" if guess else f"teachers: {', '.join(spec.teachers)}"
            yield mistake("E0208", (*path, name), f"`{name}` is not one of the teachers", fix, at_key=True)
        elif spec.student.distill is None or name not in routed:
            yield mistake("E0303", (*path, name), "no distillation asks this teacher", "remove it", at_key=True)


def serves_every_teacher(spec: Spec) -> bool:
    """Whether no teacher needs devices of the cluster: somebody serves each of them."""
    routed = {rule.teacher for rule in spec.routing}
    return bool(routed) and routed <= set(spec.engines.teachers)


def _check_phases(spec: Spec) -> Iterator[Problem]:
    for stage in stages(spec):
        block, path = stage.block, stage.path
        if not isinstance(block, GrpoPhase):
            continue
        if block.advantage == "outcome" and block.process_weight != STATED_PROCESS_WEIGHT:
            detail = "`advantage: outcome` has no process credit"
            yield mistake("E0303", (*path, "process_weight"), detail, "remove it, or write `advantage: process`", at_key=True)
        yield from _check_settings(block, path, spec)


def _check_settings(block: GrpoPhase, path: Path, spec: Spec) -> Iterator[Problem]:
    """The settings of a phase lie over those of each of its domains."""
    if not block.settings:
        return
    for name in block.domains:
        domain = spec.domains.get(name)
        if domain is not None and domain.world in BUILTIN_WORLDS:
            for field in locations_of(domain.world, block.settings):
                detail = "a phase plays in the files that its domain names"
                fix = f"remove it, or write it to `domains.{name}.settings`"
                yield mistake("E0303", (*path, "settings", field), detail, fix, at_key=True)
            inherited = {key: value for key, value in domain.settings.items() if key not in block.settings}
            yield from build_settings(domain.world, {**inherited, **block.settings}, (*path, "settings"))[1]


def _check_engines(spec: Spec) -> Iterator[Problem]:
    """An engine with processes of its own needs devices; an embedded one has the trainer's."""
    grpo = [stage.block for stage in stages(spec) if isinstance(stage.block, GrpoPhase)]
    used = {
        ("synthesize", "rollout"): any(one.models for one in played(spec)),
        ("grpo", "rollout"): bool(grpo),
        ("grpo", "scorer"): any(block.reference_kl for block in grpo),
        ("distill", "rollout"): spec.student.distill is not None,
        ("distill", "scorer"): spec.student.distill is not None and not serves_every_teacher(spec),
        ("evaluate", "rollout"): spec.evaluate is not None,
    }
    if spec.engines.transport is not None and "vllm" not in (spec.engines.rollout, spec.engines.scorer):
        detail, fix = "the embedded engine is part of the trainer", "remove it, or write `rollout: vllm` or `scorer: vllm`"
        yield mistake("E0303", ("engines", "transport"), detail, fix, at_key=True)
    if spec.engines.listen is not None and spec.engines.transport != "http":
        detail, fix = "only vLLM's own servers listen anywhere", "remove it, or write `transport: http`"
        yield mistake("E0303", ("engines", "listen"), detail, fix, at_key=True)
    elif spec.engines.listen is not None and not any(
        is_used and getattr(spec.engines, role) == "vllm" for (_, role), is_used in used.items()
    ):
        yield mistake("E0303", ("engines", "listen"), "no job starts a vLLM engine", "remove it", at_key=True)
    for (kind, role), is_used in used.items():
        block = getattr(spec.placement, kind)
        placed: EnginePlacement | None = None if block is None else getattr(block, role)
        path = ("placement", kind, role)
        engine = getattr(spec.engines, role)
        if placed is None:
            if is_used and engine == "vllm":
                detail = f"`engines.{role}: vllm` has processes of its own, and no devices for them"
                where = path if block is None else path[:2]
                fix = f"add `{role}: {{devices: ...}}` to `placement.{kind}`"
                yield mistake("E0530", where, detail, fix, at_key=True)
        elif engine == "transformers":
            fix = f"remove it, or write `engines: {{{role}: vllm}}`"
            yield mistake("E0303", path, "an embedded engine runs on the trainer's devices", fix, at_key=True)
        elif not is_used:
            why = f"the spec has no {kind} job" if kind != "synthesize" else "no model of the run plays a role of self-play"
            if (kind, role) == ("grpo", "scorer") and grpo:
                why = "no phase has a `reference_kl`"
            if (kind, role) == ("distill", "scorer") and spec.student.distill is not None:
                why = "every teacher is served by somebody"
            yield mistake("E0303", path, why, "remove it", at_key=True)
        elif placed.shared and (why := _why_not_shared(spec, kind)) is not None:
            yield mistake("E0303", (*path, "shared"), why, "remove it", at_key=True)
        elif placed.shared and block is not None and placed.devices > block.trainer.devices:
            detail = f"{placed.devices} devices shared with a trainer of {block.trainer.devices}"
            yield mistake("E0508", (*path, "devices"), detail, f"at most {block.trainer.devices}")
        elif placed.tensor != "auto" and placed.devices % placed.tensor:
            detail = f"copies on {placed.tensor} devices each do not fill {placed.devices}"
            near = max(size for size in range(1, placed.tensor + 1) if placed.devices % size == 0)
            yield mistake("E0531", (*path, "tensor"), detail, f"nearest that does: {near}")


def _why_not_shared(spec: Spec, kind: str) -> str | None:
    """Why an engine has no GPU of a trainer to share."""
    if not ACCELERATORS[spec.cluster.accelerator].is_gpu:
        return "processes on CPUs have no device memory to share"
    return {"evaluate": "an evaluation trains nothing", "synthesize": "self-play trains nothing"}.get(kind)
