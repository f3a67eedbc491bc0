"""check: what the parts of a spec mean together. Routing and placement have passes of their own."""

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath

from ...specs.build import Path, Problem, suggest
from ...specs.distillation import Distill
from ...specs.families import BUILTIN_VOCABULARIES, dimensions_of
from ...specs.generators import GENERATOR_WORLDS, USER_WORLDS
from ...specs.locations import is_url, local_path, near
from ...specs.model import Domain, GrpoPhase, HybridShape, Model, ModelShape, Sft, Spec, TrajectorySource
from ...specs.self_play import Budget, SelfPlay
from ...specs.training import Sampling
from ...specs.worlds import locations_of
from ..compilation import Compilation, mistake
from ..losses import check_loss
from ..stages import Stage, stages

BUILTIN_TOKENIZERS = tuple(BUILTIN_VOCABULARIES)
ACTING_NEEDS = ("world", "prompts", "limits")


def check(compilation: Compilation) -> Compilation:
    """Collect every contradiction between the model, the domains and the stages."""
    spec = compilation.spec
    if spec is None:
        return compilation
    return compilation.with_mistakes(
        *_check_model(spec.model, compilation.root),
        *(found for name, domain in spec.domains.items() for found in _check_domain(("domains", name), domain, compilation)),
        *(found for stage in stages(spec) for found in _check_stage(stage, spec, compilation)),
        *_check_inheritance(spec),
        *_check_evaluation(spec, compilation),
        *_check_storage(spec.storage.runs),
    )


def _check_model(model: Model, root: FilePath) -> Iterator[Problem]:
    shape, random = model.shape, model.checkpoint == "random"
    if random and model.tokenizer == "from-checkpoint":
        fix = "write `tokenizer: builtin:tiny-words`, `builtin:bytes` or the path of a tokenizer"
        yield mistake("E0305", ("model", "tokenizer"), "there is no checkpoint to take it from", fix)
    if model.tokenizer.startswith("builtin:") and model.tokenizer not in BUILTIN_TOKENIZERS:
        detail = f"built in are {', '.join(f'`{name}`' for name in BUILTIN_TOKENIZERS)}"
        guess = suggest(model.tokenizer, BUILTIN_TOKENIZERS)
        yield mistake("E0204", ("model", "tokenizer"), detail, f"did you mean `{guess}`?" if guess else None)
    if shape is not None and shape.heads % shape.kv_heads:
        fix = f"those that do: {', '.join(str(count) for count in range(1, shape.heads + 1) if shape.heads % count == 0)}"
        yield mistake("E0306", ("model", "shape", "kv_heads"), f"{shape.kv_heads} does not divide the {shape.heads} `heads`", fix)
    if shape is not None and shape.experts_per_token > shape.experts:
        detail = f"a token cannot visit {shape.experts_per_token} of {shape.experts} `experts`"
        yield mistake("E0306", ("model", "shape", "experts_per_token"), detail, f"at most {shape.experts}, or more `experts`")
    if shape is not None and shape.head_dim % 2:
        fix = f"the nearest even widths are {shape.head_dim - 1} and {shape.head_dim + 1}"
        yield mistake("E0306", ("model", "shape", "head_dim"), "rotary positions want an even width", fix)
    if shape is not None and shape.hybrid is not None:
        yield from _check_hybrid(shape, shape.hybrid)
    for field, url in model_sources(model).items():
        path = local_path(url, root)
        if path is None or is_elsewhere(url, path):
            continue
        if not _is_folder(path):
            yield mistake("E0312", ("model", field), f"there is no folder {url}", near(path, url))
        elif field == "checkpoint" and not any(path.glob("*.safetensors")):
            inside = sorted(file.parent.name for file in path.glob("*/*.safetensors"))
            fix = "export it as safetensors; pickles are never read"
            if inside:  # the folder above a run's checkpoints: some loaders fall back to the base model there
                fix = f"did you mean `{url.rstrip('/')}/{inside[-1]}`?"
            yield mistake("E0317", ("model", field), f"{url} holds no *.safetensors file", fix)
        elif field == "tokenizer" and not (path / "tokenizer.json").is_file():
            yield mistake(
                "E0312", ("model", field), f"{url} holds no tokenizer.json", "name the folder of a Hugging Face tokenizer"
            )


def _check_hybrid(shape: ModelShape, hybrid: HybridShape) -> Iterator[Problem]:
    path: Path = ("model", "shape", "hybrid")
    if hybrid.full_attention_every > shape.layers:
        detail = f"none of the {shape.layers} `layers` would attend in full"
        yield mistake("E0306", (*path, "full_attention_every"), detail, f"at most {shape.layers}, or more `layers`")
    if hybrid.value_heads % hybrid.key_heads:
        detail = f"{hybrid.value_heads} is no multiple of the {hybrid.key_heads} `key_heads`"
        yield mistake("E0306", (*path, "value_heads"), detail, f"such as {hybrid.key_heads} or {2 * hybrid.key_heads}")
    if hybrid.rotary_dim % 2 or hybrid.rotary_dim > shape.head_dim:
        detail = f"rotary positions turn an even part of a head, whose `head_dim` is {shape.head_dim}"
        yield mistake("E0306", (*path, "rotary_dim"), detail, f"an even width up to {shape.head_dim}")


def model_sources(model: Model) -> dict[str, str]:
    """The folders that the model is read from, by field."""
    found: dict[str, str] = {}
    if model.checkpoint != "random":
        found["checkpoint"] = model.checkpoint
    if model.tokenizer != "from-checkpoint" and not model.tokenizer.startswith("builtin:"):
        found["tokenizer"] = model.tokenizer
    return found


def _check_domain(path: Path, domain: Domain, compilation: Compilation) -> Iterator[Problem]:
    for number, source in enumerate(domain.trajectories):
        here = (*path, "trajectories", number)
        if (source.path is None) == (source.synthesize is None):
            both = source.path is not None
            fix = "remove one of the two" if both else "add `path` or `synthesize`"
            yield mistake("E0302", here, "has both" if both else "has neither", fix)
            continue
        if source.synthesize is not None:
            if domain.world is None and not compilation.is_mistaken((*path, "world")):
                detail = "the domain has no `world` whose oracle could write them"
                yield mistake("E0308", (*here, "synthesize"), detail, "add `world`")
            elif domain.prompts is None and not compilation.is_mistaken((*path, "prompts")):
                yield mistake("E0308", (*here, "synthesize"), "the domain has no `prompts` to write them for", "add `prompts`")
            if source.minimum_reward is not None:
                yield mistake("E0303", (*here, "minimum_reward"), "only files are filtered by reward", "remove it", at_key=True)
            if source.format != "openai":
                detail = "demonstrations are written as chat messages"
                yield mistake("E0303", (*here, "format"), detail, "remove it: it says how the file of a `path` reads", at_key=True)
            if not source.tools and domain.world in GENERATOR_WORLDS:
                detail = f"world `{domain.world}` keeps an episode only where its evidence was looked up"
                yield mistake("E0303", (*here, "tools"), detail, "remove it", at_key=True)
            if source.name in (other.name for other in domain.trajectories[:number] if other.synthesize is not None):
                detail = f"`{source.name}` is synthesized already"
                yield mistake("E0209", (*here, "name") if source.name != "default" else here, detail, "give it another `name`")
            if source.self_play is not None:
                yield from _check_self_play((*here, "self_play"), source, source.self_play, path, domain, compilation)
            continue
        if source.self_play is not None:
            yield mistake("E0303", (*here, "self_play"), "nobody plays what is read from a file", "remove it", at_key=True)
        for name, rate in (("habit_rate", source.habit_rate), ("slip_rate", source.slip_rate)):
            if rate:
                yield mistake("E0303", (*here, name), "only `synthesize` has a demonstrator", "remove it", at_key=True)
        if not source.tools:
            yield mistake("E0303", (*here, "tools"), "the file of a `path` is read as it is", "remove it", at_key=True)
        yield from _check_file((*here, "path"), str(source.path), compilation.root)

    if domain.user is not None and domain.world is not None and domain.world not in USER_WORLDS:
        detail = f"world `{domain.world}` has no user that a model could speak for; {', '.join(USER_WORLDS)} has"
        yield mistake("E0303", (*path, "user"), detail, "remove it", at_key=True)
    for field, url in locations_of(domain.world, domain.settings).items():
        if not compilation.is_mistaken((*path, "settings", field)):
            yield from _check_place((*path, "settings", field), url, compilation.root)


def _check_self_play(
    path: Path, source: TrajectorySource, block: SelfPlay, domain_path: Path, domain: Domain, compilation: Compilation
) -> Iterator[Problem]:
    """What is said of self-play has an effect, and models that play have limits."""
    if domain.world is not None and domain.world not in GENERATOR_WORLDS:
        fix = f"remove it, or take a world that does: {', '.join(f'`{name}`' for name in GENERATOR_WORLDS)}"
        yield mistake("E0303", path, f"world `{domain.world}` does not write its own tasks", fix, at_key=True)
        return
    unused = {"sampling": block.sampling != Sampling(), "budget": block.budget != Budget()} if not source.is_played else {}
    for field in [field for field, is_set in unused.items() if is_set]:
        yield mistake("E0303", (*path, field), "no model plays a role", "remove it, or name a `solver`", at_key=True)
    if block.budget.money is not None and not (block.budget.read_price or block.budget.written_price):
        fix = "add `read_price` and `written_price`"
        yield mistake("E0303", (*path, "budget", "money"), "it bounds nothing without prices", fix, at_key=True)
    for name, rate in (("habit_rate", source.habit_rate), ("slip_rate", source.slip_rate)):
        if rate and block.solver is not None:
            yield mistake("E0303", (*path[:-1], name), "a model solves, and makes mistakes of its own", "remove it", at_key=True)
    if not source.is_played:
        return
    if domain.limits is None:
        if not compilation.is_mistaken((*domain_path, "limits")):
            yield mistake("E0308", path, "models play, and the domain has no `limits`", "add `limits` to the domain", at_key=True)
        return
    model = compilation.dimensions
    if block.models and model is not None and domain.limits.context_tokens > model.context_tokens:
        detail = f"{domain.limits.context_tokens} is more than the context of the model that plays, {model.context_tokens}"
        yield mistake("E0310", (*domain_path, "limits", "context_tokens"), detail, f"at most {model.context_tokens}")


def _check_place(path: Path, url: str, root: FilePath) -> Iterator[Problem]:
    """What a world reads is a file with something in it, or a folder."""
    place = local_path(url, root)
    if place is None or not _is_folder(place):
        yield from _check_file(path, url, root)


def _check_file(path: Path, url: str, root: FilePath) -> Iterator[Problem]:
    file = local_path(url, root)
    if file is None or is_elsewhere(url, file):
        return
    size = _file_bytes(file)
    if size is None:
        yield mistake("E0312", path, f"there is no file {url}", near(file, url))
    elif size == 0:
        yield mistake("E0313", path, f"{url} is empty", "one row of JSON on every line")


def is_elsewhere(url: str, path: FilePath) -> bool:
    """Whether a `file://` URL names a place on the machine that will train: `lock` and the job prove it there."""
    try:
        return is_url(url) and not path.exists()
    except OSError:
        return True


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
    model = compilation.dimensions
    if model is not None and block.sequence_tokens > model.context_tokens:
        detail = f"{block.sequence_tokens} is more than the model's `context_tokens`, {model.context_tokens}"
        longer = ", or a longer `model.shape`" if spec.model.shape is not None else ""
        yield mistake("E0310", (*path, "sequence_tokens"), detail, f"at most {model.context_tokens}{longer}")
    if isinstance(block, Sft):
        if (block.epochs is None) == (block.steps is None):
            both = block.epochs is not None
            fix = "remove one of the two" if both else "add `epochs` or `steps`"
            yield mistake("E0301", path, "has both" if both else "has neither", fix, at_key=True)
        if not any(compilation.is_mistaken(("domains", name, "trajectories")) for name in known):
            yield from _check_selection(stage, block, known, spec)
        return
    for name in known:
        yield from _needs_acting(_domain_path(path, stage, name), name, stage.kind, compilation)
        limits = spec.domains[name].limits
        if limits is not None and block.sequence_tokens < limits.context_tokens:
            detail = f"{block.sequence_tokens} is less than `domains.{name}.limits.context_tokens`, {limits.context_tokens}"
            fix = f"at least {limits.context_tokens}, or a lower limit"
            yield mistake("E0309", (*path, "sequence_tokens"), detail, fix)
    if isinstance(block, Distill):
        yield from check_loss(block, path)
    vocabulary = known_vocabulary(spec.model)
    top_k = (block.loss.support.top_k if isinstance(block, Distill) else None) or 0
    if vocabulary is not None and top_k > vocabulary:
        detail = f"the {top_k} most likely of {vocabulary} tokens"
        yield mistake("E0319", (*path, "loss", "support", "top_k"), detail, f"at most {vocabulary}")
    if isinstance(block, GrpoPhase) and block.updates > block.prompts:
        detail = f"{block.updates} updates, {block.prompts} prompts"
        yield mistake("E0316", (*path, "updates"), detail, f"at most {block.prompts} updates, or more `prompts`")


def known_vocabulary(model: Model) -> int | None:
    """Tokens of the vocabulary, where the spec says which tokenizer or model it is."""
    dimensions = dimensions_of(model)
    return BUILTIN_VOCABULARIES.get(model.tokenizer) or (dimensions.vocabulary if dimensions is not None else None)


def _check_selection(stage: Stage, block: Sft, known: list[str], spec: Spec) -> Iterator[Problem]:
    """Every domain needs trajectories of the name that the stage asks for; where none has them, the name is at fault."""
    there = {name: [source.name for source in spec.domains[name].trajectories] for name in known}
    lacking = [name for name in known if block.trajectories not in there[name]]
    if len(lacking) > 1 and len(lacking) == len(known):
        names = sorted({one for names in there.values() for one in names})
        detail = f"no domain of this stage has trajectories named `{block.trajectories}`"
        yield mistake("E0307", (*stage.path, "trajectories"), detail, _did_you_mean(block.trajectories, names))
        return
    for name in lacking:
        detail = f"domain `{name}` has no trajectories named `{block.trajectories}`"
        path = (*stage.path, "trajectories") if len(known) == 1 else _domain_path(stage.path, stage, name)
        yield mistake("E0307", path, detail, _did_you_mean(block.trajectories, there[name]))


def _did_you_mean(word: str, names: Sequence[str]) -> str:
    guess = suggest(word, names)
    if guess and guess != word:
        return f"did you mean `{guess}`?"
    return f"there are: {', '.join(f'`{name}`' for name in names)}" if names else "add `trajectories` to the domain"


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
        detail = f"`{what}` acts in domain `{name}`, which has no {fields}"
        yield mistake("E0308", path, detail, f"add {fields} to `domains.{name}`", at_key=True)


def _check_inheritance(spec: Spec) -> Iterator[Problem]:
    merge, path = spec.student.merge, ("student", "merge")
    if merge is None:
        return
    if spec.student.distill is not None:
        yield mistake("E0323", path, "there is `student.distill` already", "remove one of the two", at_key=True)
    if merge.method == "average" and merge.scale is not None:
        detail = "a mean has no scale"
        yield mistake("E0303", (*path, "scale"), detail, "remove it, or write `method: task_arithmetic`", at_key=True)
    if merge.method == "task_arithmetic" and merge.scale is None:
        yield mistake("E0203", path, "`task_arithmetic` needs a `scale`", "add `scale`, such as 0.3", at_key=True)


def _check_evaluation(spec: Spec, compilation: Compilation) -> Iterator[Problem]:
    if spec.evaluate is None:
        return
    for name, domain in spec.domains.items():
        yield from _needs_acting(("domains", name), name, "evaluate", compilation)
        if domain.prompts is not None and domain.prompts.heldout < spec.evaluate.episodes:
            detail = f"{domain.prompts.heldout} held-out tasks, but `evaluate.episodes` is {spec.evaluate.episodes}"
            fix = f"at least {spec.evaluate.episodes}, or fewer episodes"
            yield mistake("E0315", ("domains", name, "prompts", "heldout"), detail, fix)
    if spec.evaluate.continued_sft and spec.student.distill is None:
        detail = "the control matches the tokens of distillation, and there is no `student.distill`"
        yield mistake("E0303", ("evaluate", "continued_sft"), detail, "remove it, or add `student.distill`", at_key=True)


def _check_storage(runs: str) -> Iterator[Problem]:
    """A run locks and renames its files, which only a folder of this machine lets it do."""
    if local_path(runs, FilePath()) is None or not runs or "\0" in runs:
        what = "a URL" if is_url(runs) else "no path"
        yield mistake(
            "E0206", ("storage", "runs"), f"{runs!r} is {what}; runs are written to a folder of this machine", "write a path"
        )
