"""idle: what a spec says that could never have an effect. Peers let these runs finish: a teacher that is its student, a reward
that is always the same, a setting of something that is not there.
"""

from collections.abc import Iterator
from dataclasses import fields

from ...specs.build import Problem
from ...specs.generators import USER_WORLDS
from ...specs.model import Domain, GrpoPhase, Sft, Spec, Teacher
from ...specs.reward import Reward
from ..compilation import Compilation, mistake
from ..stages import Stage, stages


def idle(compilation: Compilation) -> Compilation:
    """Collect settings without effect and stages that could learn nothing."""
    spec = compilation.spec
    if spec is None:
        return compilation
    acted_in = set(spec.domains) if spec.evaluate is not None else set[str]()
    tokenizer = spec.model.tokenizer
    acted_in |= {name for stage in stages(spec) if not isinstance(stage.block, Sft) for name in stage.domains}
    return compilation.with_mistakes(
        *(found for name, domain in spec.domains.items() for found in _check_domain(name, domain, name in acted_in, tokenizer)),
        *(found for stage in stages(spec) for found in _check_stage(stage, spec)),
        *(found for name, teacher in spec.teachers.items() for found in _check_teacher(name, teacher, spec)),
    )


def _check_domain(name: str, domain: Domain, is_acted_in: bool, tokenizer: str) -> Iterator[Problem]:
    path = ("domains", name)
    wants_world = is_acted_in or any(source.synthesize is not None for source in domain.trajectories)
    if domain.world is None and not wants_world:  # otherwise the world is what is missing, and `check` says so
        unused = [name for name in ("prompts", "limits", "user") if getattr(domain, name) is not None]
        unused += ["reward"] if domain.reward != Reward() else []
        for field in unused:
            detail = f"`{field}` is of episodes in a world, and this domain has no `world`"
            yield mistake("E0303", (*path, field), detail, "add `world`, or remove this", at_key=True)
    is_heard = is_acted_in or any(source.has_model_solver for source in domain.trajectories)
    if domain.user is not None and domain.world in USER_WORLDS and not is_heard:
        detail = "nobody talks with this user: nothing is rolled out or evaluated here, and no model solves in self-play"
        yield mistake("E0303", (*path, "user"), detail, "remove it", at_key=True)
    limits = domain.limits
    if limits is not None and limits.response_tokens > limits.context_tokens:
        detail = (
            f"one turn of {limits.response_tokens} tokens does not fit into the episode's `context_tokens`, {limits.context_tokens}"
        )
        yield mistake("E0303", (*path, "limits", "response_tokens"), detail, f"at most {limits.context_tokens}")
    elif limits is not None and limits.finalize is not None:
        prompt = limits.finalize.prompt
        asks = len(prompt.encode() if tokenizer == "builtin:bytes" else prompt.split())  # a word is at least a token
        if asks + limits.response_tokens >= limits.context_tokens:
            detail = (
                f"asking takes {asks} tokens or more and answering up to `response_tokens`, {limits.response_tokens}, of the "
                f"episode's `context_tokens`, {limits.context_tokens}: nothing is left to act in"
            )
            yield mistake("E0333", (*path, "limits", "finalize"), detail, "raise `context_tokens`, or lower `response_tokens`")


def _check_stage(stage: Stage, spec: Spec) -> Iterator[Problem]:
    block, path = stage.block, stage.path
    if block.schedule == "constant" and block.final_lr_fraction:
        detail = "a constant schedule does not decay"
        yield mistake("E0303", (*path, "final_lr_fraction"), detail, "remove it, or write `schedule: linear`", at_key=True)
    if not isinstance(block, GrpoPhase):
        return
    if block.sampling.temperature == 0:
        detail = f"greedy: the {block.samples} rollouts of a prompt are all the same, and so are their rewards"
        yield mistake("E0318", (*path, "sampling", "temperature"), detail, "above 0, such as 1.0")
    for name in stage.domains:
        domain = spec.domains.get(name)
        if domain is not None and domain.world is not None and _is_constant(domain.reward):
            detail = "every episode is rewarded with 0, so the rewards of a group never differ"
            yield mistake("E0318", ("domains", name, "reward"), detail, "give `outcome` a weight, such as 1.0", at_key=True)


def _is_constant(reward: Reward) -> bool:
    return not any((reward.outcome, reward.format, reward.steps, reward.efficiency, reward.repetition))


def _check_teacher(name: str, teacher: Teacher, spec: Spec) -> Iterator[Problem]:
    """A teacher that repeats the student's own SFT knows what the student knows."""
    sft = spec.student.sft
    if len(teacher.phases) != 1 or teacher.start != sft.start or not isinstance(teacher.phases[0], Sft):
        return
    phase = teacher.phases[0]
    if all(getattr(phase, field.name) == getattr(sft, field.name) for field in fields(Sft)):
        detail = f"from `{teacher.start}` through the same phase as `student.sft`: `{name}` is the student"
        yield mistake("E0408", ("teachers", name), detail, "write `from: student.sft`, or train on other trajectories", at_key=True)
