"""The sweep file: variants of one spec over seeds. A row is a spec that extends the base and says what it changes.

With `along` there is a base for every point of an axis, and every row is run at every point.

`read_sweep` collects what is wrong with the file's own form; what a row's spec means is the compiler's to check, row by row.
"""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

from .build import Path, Problem, build
from .diagnostics import Diagnostic, Span, SpecInvalid
from .extend import EXTENDS, READABLE
from .fields import Identity, spec_field
from .load import diagnose
from .model import NAME
from .yaml import Document, Spans, read_file

LARGEST_SEED = 2**31 - 1
DECIDED = ("polymath", EXTENDS, "name", "seed", "storage")  # what the sweep says of a row's spec, so that the row cannot


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One variant."""

    title: str | None = spec_field("What the table calls it; by default the row's name.", default=None, identity=Identity.LABEL)
    seeds: tuple[int, ...] | None = spec_field(
        "Seeds of this row; by default all of the sweep's.",
        default=None,
        minimum=0,
        maximum=LARGEST_SEED,
        item_minimum_count=1,
    )
    subject: str = spec_field(
        "The model that the row is about: `student`, or another that its spec evaluates in every domain.",
        default="student",
        examples=("sft_continued",),
    )
    change: dict[str, Any] = spec_field("What is laid over the base, as `extends` does; null takes away.", default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A point of an axis."""

    at: float = spec_field("Where it stands on the axis.", examples=(16,))
    base: str = spec_field("The spec that the rows change there.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Along:
    """An axis along which every row is run: bases that differ in one thing."""

    title: str = spec_field("What the axis shows.", identity=Identity.LABEL, examples=("tool turns of an episode",))
    points: tuple[Point, ...] = spec_field("Its points.", item_minimum_count=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A spec that rows change, the point of the axis that it is for (None without an axis), and where the file names it."""

    at: float | None
    spec: str
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Variants of a spec; the first is the one that the others are compared with."""

    polymath_sweep: Literal[1] = spec_field("Version of the sweep file.", identity=Identity.LABEL)
    name: str = spec_field("Name of the sweep, and of its folder of results.", pattern=NAME, identity=Identity.LABEL)
    base: str | None = spec_field("The spec that the rows change, in the folder of this file or below.", default=None)
    along: Along | None = spec_field("Instead of one base: a base for every point of an axis.", default=None)
    seeds: tuple[int, ...] = spec_field("Seeds of every row.", minimum=0, maximum=LARGEST_SEED, item_minimum_count=1)
    rows: dict[str, Row] = spec_field("Rows by name, in the order of the table.", pattern=NAME, item_minimum_count=1)

    @property
    def reference(self) -> str:
        """The name of the first row."""
        return next(iter(self.rows))

    @property
    def bases(self) -> tuple[Base, ...]:
        """What the rows change, in the order of the file."""
        if self.along is None:
            return () if self.base is None else (Base(at=None, spec=self.base, path=("base",)),)
        return tuple(
            Base(at=point.at, spec=point.base, path=("along", "points", number, "base"))
            for number, point in enumerate(self.along.points)
        )

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """The seeds of a row."""
        return self.rows[row].seeds or self.seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSweep:
    """A sweep file. With diagnostics, `sweep` only serves to find more mistakes."""

    sweep: Sweep
    document: Document
    diagnostics: tuple[Diagnostic, ...]

    def span(self, path: Path, *, key: bool = False) -> Span:
        """Where something of the file stands."""
        return self.document.spans.at(path, key=key)

    def texts(self) -> Mapping[str, str]:
        """The file's text by its name in messages."""
        return {self.document.spans.file: self.document.text}

    def spec_of(self, base: Base, row: str, seed: int) -> Document:
        """A row of a base at a seed, as if it were a spec's file: every value stands where the sweep file wrote it."""
        here: Path = ("rows", row, "change")
        change = deepcopy(self.sweep.rows[row].change)  # reading a spec rebases its paths in place
        spans = self.document.spans
        below = len(here)
        values = {path[below:]: span for path, span in spans.values.items() if path[:below] == here and path != here}
        keys = {path[below:]: span for path, span in spans.keys.items() if path[:below] == here and path != here}
        own = self.sweep.rows[row].seeds
        place: Path = ("rows", row, "seeds") if own is not None else ("seeds",)
        said = {(EXTENDS,): spans.at(base.path), ("seed",): spans.at((*place, self.sweep.seeds_of(row).index(seed)))}
        data = {EXTENDS: base.spec, **{key: value for key, value in change.items() if key not in DECIDED}, "seed": seed}
        return Document(
            text=self.document.text, data=data, spans=Spans(spans.file, {**values, **said}, {**keys, **said}), diagnostics=()
        )


def read_sweep(path: FilePath) -> ReadSweep:
    """Read a sweep file and collect every mistake of form.

    Raises:
        SpecInvalid: it cannot be understood at all.
        UserError: it cannot be read.
    """
    document = read_file(path, str(path))
    sweep: Any = None
    problems: list[Problem] = []
    if all(found.code in READABLE for found in document.diagnostics):
        sweep, problems = build(Sweep, document.data)
    diagnostics = (*document.diagnostics, *(diagnose(problem, document.spans) for problem in problems))
    if not isinstance(sweep, Sweep) or not sweep.rows:
        raise SpecInvalid(diagnostics, {document.spans.file: document.text})
    more = [diagnose(problem, document.spans) for problem in _contradictions(sweep)]
    return ReadSweep(sweep=sweep, document=document, diagnostics=(*diagnostics, *more))


def _contradictions(sweep: Sweep) -> Iterator[Problem]:
    if sweep.along is not None and sweep.base is not None:
        detail = "`along` names the bases, so this one would be ignored"
        yield Problem(code="E0303", path=("base",), detail=detail, fix="remove one of the two", at_key=True)
    if sweep.along is None and sweep.base is None:
        yield Problem(
            code="E0203", path=(), detail="a sweep needs `base`, or `along` with a base for each point", fix="add one of the two"
        )
    yield from _twice(("seeds",), sweep.seeds)
    if sweep.along is not None:
        yield from _twice(("along", "points"), tuple(point.at for point in sweep.along.points), "at")
    reference = set(sweep.seeds_of(sweep.reference))
    for name, row in sweep.rows.items():
        path: Path = ("rows", name, "seeds")
        yield from _twice(path, row.seeds or ())
        for position, seed in enumerate(row.seeds or ()):
            if seed not in reference:
                detail = f"the first row, `{sweep.reference}`, has no seed {seed}"
                yield Problem(code="E0601", path=(*path, position), detail=detail, fix="add the seed there, or remove it here")
        for key in row.change:
            if key in DECIDED:
                detail = f"the sweep decides `{key}` of its rows"
                fix = "write it into the base, or remove it"
                yield Problem(code="E0303", path=("rows", name, "change", key), detail=detail, fix=fix, at_key=True)


def _twice(path: Path, numbers: tuple[float, ...], *below: str) -> Iterator[Problem]:
    for position, number in enumerate(numbers):
        if number in numbers[:position]:
            detail = f"{number:g} stands in this list already"
            yield Problem(code="E0209", path=(*path, position, *below), detail=detail, fix="remove one of the two")
