"""A sweep's rows, each compiled at each of its seeds as a spec that extends the base; all mistakes of all rows are found first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, cast

from ..specs.build import Path, Problem, suggest
from ..specs.diagnostics import Diagnostic, SpecInvalid
from ..specs.load import diagnose
from ..specs.sweep import Base, ReadSweep, Sweep, read_sweep
from .compilation import Compilation, mistake
from .driver import compile_in_memory
from .plan import Job, Plan

TEACHERS_ROW = "sft"  # what every recovered gain is measured from


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A row at a seed, and at a point where the sweep has an axis."""

    at: float | None
    row: str
    seed: int
    done: Compilation

    @property
    def plan(self) -> Plan:
        """Its plan."""
        assert self.done.plan is not None
        return self.done.plan


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledSweep:
    """A sweep whose every row compiles. Variants come point by point and row by row, the first row's first."""

    sweep: Sweep
    variants: tuple[Variant, ...]

    @property
    def folder(self) -> FilePath:
        """Where it writes: `<storage.runs>/<name>` of the first row."""
        sources = self.variants[0].done.sources
        assert sources is not None
        return sources.runs_folder / self.sweep.name


def compile_sweep(path: FilePath) -> CompiledSweep:
    """Compile every row at every seed, in memory.

    Raises:
        SpecInvalid: carries every mistake of the file, its base and its rows, each once.
        UserError: a file cannot be read.
    """
    read = read_sweep(path)
    found: dict[tuple[str, str, str], Diagnostic] = {}
    texts = dict(read.texts())
    variants: list[Variant] = []

    def tell(diagnostics: tuple[Diagnostic, ...], row: str | None = None) -> None:
        for one in diagnostics:
            shown = one if row is None or one.span.file in read.texts() else replace(one, detail=f"{one.detail} (in row `{row}`)")
            found.setdefault((one.code, str(one.span), one.detail), shown)

    tell(read.diagnostics)

    def compile_row(base: Base, row: str) -> None:
        for seed in dict.fromkeys(read.sweep.seeds_of(row)):
            try:
                done = compile_in_memory(path, written=read.spec_of(base, row, seed))
            except SpecInvalid as error:  # another seed would say the same
                texts.update(error.sources)
                tell(error.diagnostics, row if row != read.sweep.reference else None)
                break
            variants.append(Variant(at=base.at, row=row, seed=seed, done=done))

    for base in read.sweep.bases:
        for row in read.sweep.rows:
            compile_row(base, row)
        here = [variant for variant in variants if variant.at == base.at]
        tell(tuple(diagnose(problem, read.document.spans) for problem in _incomparable(read, here)))
    if found:
        raise SpecInvalid(tuple(found.values()), texts)
    return CompiledSweep(sweep=read.sweep, variants=tuple(variants))


def routing_of(plan: Plan) -> Mapping[str, str]:
    """Teacher by domain of a plan; empty where its student inherits from none."""
    routed = [job for job in plan.jobs if "routing" in job.settings]
    return cast(Mapping[str, str], routed[0].settings["routing"]) if routed else {}


def _incomparable(read: ReadSweep, variants: list[Variant]) -> Iterator[Problem]:
    """Rows that have no score, or none that the first row's could be compared with."""
    firsts: dict[str, Variant] = {}
    for variant in variants:
        firsts.setdefault(variant.row, variant)
    reference = firsts.get(read.sweep.reference)
    if reference is None:
        return
    measured = _evaluations(reference.plan)
    routing = routing_of(reference.plan)
    path: Path = ("rows", reference.row)
    if not routing:
        detail = "it has no student that teachers are routed to, so there is no gain to recover"
        yield mistake(
            "E0601", path, detail, "add `student.distill` or `student.merge` to it, or put another row first", at_key=True
        )
        return
    lacking = [model for model in dict.fromkeys((TEACHERS_ROW, *routing.values())) if model not in measured]
    if lacking:
        detail = f"the first row does not evaluate {', '.join(f'`{model}`' for model in lacking)}"
        yield mistake("E0601", path, detail, "write `evaluate: {models: all, ...}` there", at_key=True)
        return
    for row, variant in firsts.items():
        yield from _check_subject(row, read.sweep.rows[row].subject, variant.plan, measured[TEACHERS_ROW])


def _check_subject(row: str, subject: str, plan: Plan, reference: Job) -> Iterator[Problem]:
    there = _evaluations(plan)
    path: Path = ("rows", row, "subject")
    if subject not in there:
        guess = suggest(subject, tuple(there))
        fix = f"did you mean `{guess}`?" if guess else f"it evaluates {', '.join(f'`{one}`' for one in there) or 'nothing'}"
        yield mistake("E0407", path, f"the spec of this row evaluates no model `{subject}`", fix)
        return
    wanted, tried = _tasks(reference), _tasks(there[subject])
    different = sorted(domain for domain in wanted if tried.get(domain) != wanted[domain])
    if different:
        detail = f"`{subject}` does not try the first row's held-out tasks of {', '.join(f'`{one}`' for one in different)}"
        fix = "leave worlds, their settings and `evaluate.episodes` as they are, and choose a subject that acts in every domain"
        yield mistake("E0601", path, detail, fix)


def _evaluations(plan: Plan) -> dict[str, Job]:
    """The evaluations of a plan by the model that they are about."""
    return {str(job.settings["subject"]): job for job in plan.jobs if job.kind == "evaluate"}


def _tasks(evaluation: Job) -> dict[str, Any]:
    """What decides the tasks that an evaluation tries, by domain."""
    domains = cast(Mapping[str, Mapping[str, Any]], evaluation.settings["domains"])
    episodes = cast(Mapping[str, Any], evaluation.settings["stage"])["episodes"]
    return {name: (domain["world"], domain["settings"], episodes) for name, domain in domains.items()}
