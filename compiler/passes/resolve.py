"""resolve: what a spec leaves open is filled in: `domains: all`, and the defaults of the worlds' settings."""

from dataclasses import replace
from typing import Any

from ...specs.build import Problem, suggest, to_json
from ...specs.hardware import ACCELERATORS
from ...specs.installed import installed_worlds
from ...specs.machine import Cluster, Software
from ...specs.model import Domain, SftPhase, Spec, Teacher
from ...specs.worlds import BUILTIN_WORLDS, build_settings
from ..compilation import Compilation, mistake
from ..settings import check_settings
from ..stages import stages

CPU_TORCH = "2.13.0"  # the newest with a wheel for CPUs alone
GPU_TORCH, GPU_CUDA = "2.15.0", "13.0"


def resolve(compilation: Compilation) -> Compilation:
    """Fill in domains and world settings; settings are checked against the world's own declaration."""
    spec = compilation.spec
    if spec is None:
        return compilation
    mistakes: list[Problem] = []
    domains = {name: _resolve_domain(name, domain, mistakes) for name, domain in spec.domains.items()}
    every = tuple(sorted(domains))  # the order of a spec's keys means nothing
    student = replace(spec.student, sft=replace(spec.student.sft, domains=_all(spec.student.sft.domains, every)))
    teachers = {name: _resolve_teacher(teacher, every) for name, teacher in spec.teachers.items()}
    cluster = replace(spec.cluster, software=_resolve_software(spec.cluster))
    resolved: Spec = replace(spec, domains=domains, student=student, teachers=teachers, cluster=cluster)
    return _say_what_was_open(replace(compilation, spec=resolved).with_mistakes(*mistakes), spec)


def _say_what_was_open(compilation: Compilation, written: Spec) -> Compilation:
    resolved = compilation.spec
    assert resolved is not None
    for before, after in zip(stages(written), stages(resolved), strict=True):
        if getattr(before.block, "domains", None) == "all":
            compilation = compilation.decided((*after.path, "domains"), after.domains, by="resolve", reason="`all` domains")
    for name in ("torch", "cuda"):
        if getattr(written.cluster.software, name) is None:
            value = getattr(resolved.cluster.software, name)
            reason = f"what a {written.cluster.accelerator} needs"
            compilation = compilation.decided(("cluster", "software", name), value, by="resolve", reason=reason)
    return compilation


def _resolve_software(cluster: Cluster) -> Software:
    """The versions that the accelerator needs, where the spec names none."""
    is_gpu = ACCELERATORS[cluster.accelerator].is_gpu
    torch = cluster.software.torch or (GPU_TORCH if is_gpu else CPU_TORCH)
    return Software(torch=torch, cuda=cluster.software.cuda or (GPU_CUDA if is_gpu else None))


def _all(domains: Any, every: tuple[str, ...]) -> tuple[str, ...]:
    return every if domains == "all" else domains


def _resolve_teacher(teacher: Teacher, every: tuple[str, ...]) -> Teacher:
    phases = tuple(
        replace(phase, domains=_all(phase.domains, every)) if isinstance(phase, SftPhase) else phase for phase in teacher.phases
    )
    return replace(teacher, phases=phases)


def _resolve_domain(name: str, domain: Domain, mistakes: list[Problem]) -> Domain:
    path = ("domains", name)
    if domain.world is None:
        if domain.settings:
            detail = "`settings` are of a world, and this domain has none"
            mistakes.append(mistake("E0303", (*path, "settings"), detail, "add `world`, or remove this", at_key=True))
        return domain
    if domain.world not in BUILTIN_WORLDS:
        installed = installed_worlds()
        if domain.world not in installed:
            known = [*BUILTIN_WORLDS, *installed]
            guess = suggest(domain.world, known)
            fix = f"did you mean `{guess}`?" if guess else f"worlds: {', '.join(f'`{one}`' for one in known)}"
            mistakes.append(mistake("E0311", (*path, "world"), f"no world is called {domain.world!r}", fix))
            return domain
        filled, problems = check_settings(domain.world, domain.settings, (*path, "settings"))
        mistakes.extend(problems)
        return replace(domain, settings=filled)
    value, problems = build_settings(domain.world, domain.settings, (*path, "settings"))
    mistakes.extend(problems)
    return domain if problems else replace(domain, settings=to_json(value))
