"""check: what the parts of a spec mean together. Routing and placement have passes of their own."""

from collections.abc import Iterator
from pathlib import Path as FilePath

from ...specs.build import Path, Problem
from ...specs.locations import local_path
from ...specs.model import Domain, GrpoPhase, Model, Sft, Spec
from ..compilation import Compilation, mistake
from ..stages import Stage, stages

ACTING_NEEDS = ("world", "prompts", "limits")


def check(compilation: Compilation) -> Compilation:
    """Collect every contradiction between the model, the domains and the stages."""
    spec = compilation.spec
    if spec is None:
        return compilation
    return compilation.with_mistakes(
        *_check_model(spec.model, compilation.root),
        *(found for name, domain in spec.domains.items() for found in _check_domain(("domains", name), domain, compilation.root)),
        *(found for stage in stages(spec) for found in _check_stage(stage, spec, compilation)),
        *_check_evaluation(spec, compilation),
    )


def _check_model(model: Model, root: FilePath) -> Iterator[Problem]:
    shape, random = model.shape, model.checkpoint == "random"
    if random and shape is None:
        yield mistake("E0304", ("model", "shape"), "a random model needs a `shape`")
    if not random and shape is not None:
        yield mistake("E0304", ("model", "shape"), "the checkpoint decides the shape; remove this", at_key=True)
    if random and model.tokenizer == "from-checkpoint":
        fix = "write `tokenizer: builtin:tiny-words`, `builtin:bytes` or the path of a tokenizer"
        yield mistake("E0305", ("model", "tokenizer"), "there is no checkpoint to take it from", fix)
    if model.tokenizer.startswith("builtin:") and model.tokenizer not in ("builtin:tiny-words", "builtin:bytes"):
        yield mistake("E0204", ("model", "tokenizer"), "built in are `builtin:tiny-words` and `builtin:bytes`")
    if shape is not None and shape.heads % shape.kv_heads:
        yield mistake("E0306", ("model", "shape", "kv_heads"), f"{shape.kv_heads} does not divide the {shape.heads} `heads`")
    if shape is not None and shape.experts_per_token > shape.experts:
        detail = f"a token cannot visit {shape.experts_per_token} of {shape.experts} `experts`"
        yield mistake("E0306", ("model", "shape", "experts_per_token"), detail)
    if shape is not None and shape.head_dim % 2:
        yield mistake("E0306", ("model", "shape", "head_dim"), "rotary positions want an even width")
    for field, url in model_sources(model).items():
        path = local_path(url, root)
        if path is None:
            continue
        if not _is_folder(path):
            yield mistake("E0312", ("model", field), f"there is no folder {url}", "paths are relative to the spec's folder")
        elif field == "checkpoint" and not any(path.glob("*.safetensors")):
            yield mistake("E0317", ("model", field), f"{url} holds no *.safetensors file")


def model_sources(model: Model) -> dict[str, str]:
    """The folders that the model is read from, by field."""
    found: dict[str, str] = {}
    if model.checkpoint != "random":
        found["checkpoint"] = model.checkpoint
    if model.tokenizer != "from-checkpoint" and not model.tokenizer.startswith("builtin:"):
        found["tokenizer"] = model.tokenizer
    return found


def _check_domain(path: Path, domain: Domain, root: FilePath) -> Iterator[Problem]:
    for number, source in enumerate(domain.trajectories):
        here = (*path, "trajectories", number)
        if (source.path is None) == (source.synthesize is None):
            yield mistake("E0302", here, "has neither" if source.path is None else "has both")
            continue
        if source.synthesize is not None:
            if domain.world is None:
                yield mistake("E0308", (*here, "synthesize"), "the domain has no `world` whose oracle could write them")
            elif domain.prompts is None:
                yield mistake("E0308", (*here, "synthesize"), "the domain has no `prompts` to write them for")
            if source.minimum_reward is not None:
                yield mistake("E0303", (*here, "minimum_reward"), "only files are filtered by reward")
            continue
        for name, rate in (("habit_rate", source.habit_rate), ("slip_rate", source.slip_rate)):
            if rate:
                yield mistake("E0303", (*here, name), "only `synthesize` has a demonstrator", at_key=True)
        yield from _check_file((*here, "path"), str(source.path), root)


def _check_file(path: Path, url: str, root: FilePath) -> Iterator[Problem]:
    file = local_path(url, root)
    if file is None:
        return
    size = _file_bytes(file)
    if size is None:
        fix = f"it is sought at {file}; give its path relative to the spec's folder, or --set it"
        yield mistake("E0312", path, f"there is no file {url}", fix)
    elif size == 0:
        yield mistake("E0313", path, f"{url} is empty")


def _file_bytes(path: FilePath) -> int | None:
    """The size of a file; None where there is none, or it may not be looked at."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _is_folder(path: FilePath) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _check_stage(stage: Stage, spec: Spec, compilation: Compilation) -> Iterator[Problem]:
    block, path = stage.block, stage.path
    known = [name for name in stage.domains if name in spec.domains]
    shape = spec.model.shape
    if shape is not None and block.sequence_tokens > shape.context_tokens:
        detail = f"{block.sequence_tokens} is more than the model's `context_tokens`, {shape.context_tokens}"
        yield mistake("E0310", (*path, "sequence_tokens"), detail)
    if isinstance(block, Sft):
        if (block.epochs is None) == (block.steps is None):
            yield mistake("E0301", path, "has neither" if block.epochs is None else "has both", at_key=True)
        for name in known:
            if compilation.is_mistaken(("domains", name, "trajectories")):
                continue
            if not any(source.name == block.trajectories for source in spec.domains[name].trajectories):
                there = ", ".join(f"`{source.name}`" for source in spec.domains[name].trajectories) or "none"
                detail = f"domain `{name}` has no trajectories named `{block.trajectories}`"
                yield mistake("E0307", _domain_path(path, stage, name), detail, f"it has: {there}")
        return
    for name in known:
        yield from _needs_acting(_domain_path(path, stage, name), name, stage.kind, compilation)
        limits = spec.domains[name].limits
        if limits is not None and block.sequence_tokens < limits.context_tokens:
            detail = f"{block.sequence_tokens} is less than `domains.{name}.limits.context_tokens`, {limits.context_tokens}"
            yield mistake("E0309", (*path, "sequence_tokens"), detail)
    if isinstance(block, GrpoPhase) and block.updates > block.prompts:
        yield mistake("E0316", (*path, "updates"), f"{block.updates} updates, {block.prompts} prompts")


def _domain_path(path: Path, stage: Stage, name: str) -> Path:
    """Where a stage names a domain; a stage that takes all domains is blamed on the domain itself."""
    written = getattr(stage.block, "domains", None)
    return (*path, "domains", written.index(name)) if written else ("domains", name)


def _needs_acting(path: Path, name: str, what: str, compilation: Compilation) -> Iterator[Problem]:
    assert compilation.spec is not None
    domain = compilation.spec.domains[name]
    unset = [field for field in ACTING_NEEDS if getattr(domain, field) is None]
    missing = [field for field in unset if not compilation.is_mistaken(("domains", name, field))]
    if missing:
        fields = ", ".join(f"`{field}`" for field in missing)
        yield mistake("E0308", path, f"`{what}` acts in domain `{name}`, which has no {fields}", at_key=True)


def _check_evaluation(spec: Spec, compilation: Compilation) -> Iterator[Problem]:
    if spec.evaluate is None:
        return
    for name, domain in spec.domains.items():
        yield from _needs_acting(("domains", name), name, "evaluate", compilation)
        if domain.prompts is not None and domain.prompts.heldout < spec.evaluate.episodes:
            detail = f"{domain.prompts.heldout} held-out tasks, but `evaluate.episodes` is {spec.evaluate.episodes}"
            yield mistake("E0315", ("domains", name, "prompts", "heldout"), detail)
    if spec.evaluate.continued_sft and spec.student.distill is None:
        detail = "the control matches the tokens of distillation, and there is no `student.distill`"
        yield mistake("E0303", ("evaluate", "continued_sft"), detail)
