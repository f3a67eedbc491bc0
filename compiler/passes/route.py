"""route: every domain gets its one teacher, and the teachers an order in which they can be trained. What models are to play needs
them trained, so they must not be trained on it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ...specs.build import Path, Problem, suggest
from ...specs.model import Spec
from ..compilation import Compilation, mistake
from ..stages import played, stages

ROOTS = ("base", "student.sft")
STUDENT_ROWS = ("base", "sft", "student", "sft_continued")


def route(compilation: Compilation) -> Compilation:
    """Check routing and ancestry; order the teachers."""
    spec = compilation.spec
    if spec is None:
        return compilation
    owners: dict[str, str] = {}
    mistakes: list[Problem] = []
    for number, rule in enumerate(spec.routing):
        for position, domain in enumerate(rule.domains):
            if domain in owners:
                detail = f"`{domain}` is routed to `{owners[domain]}` already"
                fix = f"remove it from one of the rules of `{owners[domain]}` and `{rule.teacher}`"
                mistakes.append(mistake("E0402", ("routing", number, "domains", position), detail, fix))
            owners.setdefault(domain, rule.teacher)
    routing_is_whole = not compilation.is_mistaken(("routing",))
    if spec.student.inherits_by is not None and routing_is_whole:
        for domain in [domain for domain in spec.domains if domain not in owners]:
            detail = f"`student.{spec.student.inherits_by}` needs a teacher for `{domain}`"
            mistakes.append(mistake("E0401", ("domains", domain), detail, "add the domain to a rule of `routing`", at_key=True))
    order, lost = _order(spec)
    if _has_all_teachers(compilation, spec):
        mistakes += [*_check_names(spec), *lost, *_check_players(spec, order)]
    used = {*owners.values(), *(model for one in played(spec) for model in one.models.values())}
    for name in reversed(order):
        if name in used:
            used.add(spec.teachers[name].start)
    for name in [name for name in order if name not in used and routing_is_whole]:
        detail = f"`{name}` scores no domain and plays no role, and no teacher that does starts from it"
        mistakes.append(mistake("E0403", ("teachers", name), detail, "route a domain to it, or remove it", at_key=True))
    return replace(compilation, owners=owners, order=order).with_mistakes(*mistakes)


def _has_all_teachers(compilation: Compilation, spec: Spec) -> bool:
    """Whether every teacher that is written could be read."""
    return all(path[1] in spec.teachers for path in compilation.spans.keys if len(path) == 2 and path[0] == "teachers")


def _order(spec: Spec) -> tuple[tuple[str, ...], list[Problem]]:
    """Teachers, parents first, by name otherwise; those that cannot be ordered are mistakes."""
    order: list[str] = []
    mistakes: list[Problem] = []
    waiting = dict(spec.teachers)
    for name, teacher in spec.teachers.items():
        if teacher.start not in ROOTS and teacher.start not in spec.teachers:
            known = [*ROOTS, *(other for other in spec.teachers if other != name)]
            guess = suggest(teacher.start, known)
            fix = f"did you mean `{guess}`?" if guess else f"one of {', '.join(f'`{one}`' for one in known)}"
            mistakes.append(mistake("E0404", ("teachers", name, "from"), f"nothing is called {teacher.start!r}", fix))
            del waiting[name]
    while waiting:
        ready = sorted(name for name, teacher in waiting.items() if teacher.start in ROOTS or teacher.start in order)
        if not ready:
            break
        order += ready
        for name in ready:
            del waiting[name]
    blamed = {problem.path[1] for problem in mistakes}
    for name in waiting:
        chain = [name]
        while (start := spec.teachers[chain[-1]].start) in waiting and start not in chain:
            chain.append(start)
        if start in chain:
            shown = " -> ".join([*chain, start])
            mistakes.append(
                mistake("E0405", ("teachers", name, "from"), shown, "let one of them start from `base` or `student.sft`")
            )
        else:
            assert start in blamed
    return tuple(order), mistakes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wait:
    """A model that another one waits for."""

    model: str
    why: str
    role: Path | None = None  # of self-play, which says so


def _check_players(spec: Spec, order: tuple[str, ...]) -> Iterator[Problem]:
    """Every model that plays exists, and can be trained before what it plays is read."""
    known = [*ROOTS, *spec.teachers]
    waits: dict[str, list[_Wait]] = {model: [] for model in known}
    for name in order:
        waits[name].append(_Wait(model=spec.teachers[name].start, why="starts from"))
    for one in played(spec):
        for role, model in one.models.items():
            if model not in known:
                guess = suggest(model, known)
                fix = f"did you mean `{guess}`?" if guess else f"one of {', '.join(f'`{name}`' for name in known)}, or an endpoint"
                yield mistake("E0409", (*one.path, role), f"nothing is called {model!r}", fix)
                continue
            wait = _Wait(model=model, why=f"trains on `{one.domain}.{one.source.name}`, whose {role} is", role=(*one.path, role))
            for stage in stages(spec):
                if one.is_read_by(stage):
                    waits["student.sft" if stage.id == "sft" else str(stage.path[1])].append(wait)
    blamed: set[Path] = set()
    for model, needed in waits.items():
        for wait in needed:
            way = _way(waits, wait.model, model)
            if wait.role is not None and wait.role not in blamed and way is not None:
                blamed.add(wait.role)
                circle = ", which ".join(f"{one.why} `{one.model}`" for one in (wait, *way))
                fix = "let another model play, or let the stage train on another source"
                yield mistake("E0410", wait.role, f"`{model}` {circle}", fix)


def _way(waits: Mapping[str, list[_Wait]], start: str, goal: str) -> tuple[_Wait, ...] | None:
    """What leads from one model to another, each waiting for the next; None where nothing does."""
    ways: dict[str, tuple[_Wait, ...]] = {start: ()}
    frontier = [start]
    while frontier and goal not in ways:
        here = frontier.pop(0)
        for wait in waits[here]:
            if wait.model not in ways:
                ways[wait.model] = (*ways[here], wait)
                frontier.append(wait.model)
    return ways.get(goal)


def _check_names(spec: Spec) -> Iterator[Problem]:
    for name in spec.teachers:
        if name in STUDENT_ROWS:
            yield mistake(
                "E0406",
                ("teachers", name),
                f"`{name}` already stands for a model of the student's",
                "choose another name",
                at_key=True,
            )
    if spec.evaluate is None or spec.evaluate.models == "all":
        return
    rows = ["base", "sft", *spec.teachers]
    rows += ["student"] if spec.student.inherits_by is not None else []
    rows += ["sft_continued"] if spec.evaluate.continued_sft else []
    for position, model in enumerate(spec.evaluate.models):
        if model not in rows:
            guess = suggest(model, rows)
            fix = f"did you mean `{guess}`?" if guess else f"one of {', '.join(f'`{row}`' for row in rows)}"
            yield mistake("E0407", ("evaluate", "models", position), f"this spec makes no model `{model}`", fix)
