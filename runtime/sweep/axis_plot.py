"""A sweep's recovered gains along its axis: one panel for the mean over domains and one for each domain, a line for every row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..report.charts import WIDTH, Scale, nice_ticks, padded, svg
from ..report.markup import Child, tag
from .picture import standing_alone

KINDS = ("student", "sft", "teacher", "sft_continued")  # colours by row; rows beyond them share the last
MOST_PANELS = 3  # in a row of panels
TOP, PANEL_HEIGHT, LEFT, BOTTOM = 40, 250, 52, 46
Gain = Callable[[Mapping[str, Any]], float | None]


def axis_plot(figures: Mapping[str, Any]) -> str:
    """Lines join the means over seeds, small marks are single seeds. Points stand at equal distances, in the order of the file. A
    page of its own, style included."""
    rows: Sequence[Mapping[str, Any]] = figures["rows"]
    domains = list(dict.fromkeys(domain for row in rows for domain in row["domains"]))
    panels: list[tuple[str, Gain, Gain]] = [
        ("mean over domains", lambda row: row["recovered_gain"]["mean"], lambda run: run["recovered_gain"]["mean"]),
        *((name, _of_domain(name), lambda run, name=name: run["domains"][name]["recovered_gain"]) for name in domains),
    ]
    titles = dict.fromkeys((row["row"], row["title"]) for row in rows)
    legend = TOP + 22 * len(titles)
    height = legend + PANEL_HEIGHT * -(-len(panels) // MOST_PANELS)
    marks: list[Child] = [tag("rect", x=0, y=0, width=WIDTH, height=height, class_="page")]
    marks.append(tag("text", f"recovered gain by {figures['axis']}", x=12, y=24, class_="chart-title"))
    for number, (_, title) in enumerate(titles):
        y = TOP + 22 * number + 4
        marks += [_mark(number, 22, y, 5), tag("text", title, x=36, y=y + 4, class_="row-name")]
    width = WIDTH / MOST_PANELS
    for number, panel in enumerate(panels):
        x, y = width * (number % MOST_PANELS), legend + PANEL_HEIGHT * (number // MOST_PANELS)
        marks += _panel(figures, panel, [row for row, _ in titles], (x, y, width))
    about = f"(row - SFT) / (teacher - SFT) of every row at every value of: {figures['axis']}."
    return standing_alone(svg(WIDTH, height, f"Sweep {figures['sweep']}", about, marks))


def _of_domain(name: str) -> Gain:
    return lambda row: row["domains"].get(name)


def _panel(
    figures: Mapping[str, Any], panel: tuple[str, Gain, Gain], rows: Sequence[str], place: tuple[float, float, float]
) -> list[Child]:
    title, of_row, of_run = panel
    left, top, width = place
    points = list(dict.fromkeys(row["at"] for row in figures["rows"]))
    means = {(row["row"], row["at"]): of_row(row) for row in figures["rows"]}
    single = [(run["row"], run["at"], of_run(run)) for run in figures["runs"] if run["measured"]]
    known = [value for value in (*means.values(), *(value for *_, value in single)) if value is not None]
    across = Scale(0, len(points) - 1, left + LEFT + 14, left + width - 24)
    low, high = padded(min([0.95, *known]), max([1.0, *known]))
    up = Scale(max(-1.0, low), min(2.0, high), top + PANEL_HEIGHT - BOTTOM, top + 26)
    marks: list[Child] = [tag("text", title, x=left + LEFT, y=top + 14, class_="tick")]
    for tick in nice_ticks(up.low, up.high, 5):
        kind = "reference" if tick in (0.0, 1.0) else "grid"
        marks.append(tag("line", x1=left + LEFT, x2=left + width - 12, y1=up(tick), y2=up(tick), class_=kind))
        marks.append(tag("text", f"{tick:.4g}", x=left + LEFT - 6, y=up(tick) + 4, class_="tick", text_anchor="end"))
    for position, point in enumerate(points):
        marks.append(tag("text", f"{point:g}", x=across(position), y=up.start + 20, class_="tick", text_anchor="middle"))
    for number, row in enumerate(rows):
        kind = KINDS[min(number, len(KINDS) - 1)]
        aside = 7 * (number - (len(rows) - 1) / 2)  # so that marks of rows do not hide each other
        line = [(across(place) + aside, up(value)) for place, at in enumerate(points) if (value := means[row, at]) is not None]
        path = " ".join(f"{'L' if n else 'M'}{x:.1f},{y:.1f}" for n, (x, y) in enumerate(line))
        marks.append(tag("path", d=path, class_=f"whisker line c-{kind}"))
        marks += [_mark(number, x, y, 5) for x, y in line]
        own = [(points.index(at), value) for name, at, value in single if name == row and value is not None]
        seeds = [(across(place) + aside, up(value)) for place, value in own]
        marks += [_mark(number, x, y, 2) for x, y in seeds]
    return marks


def _mark(number: int, x: float, y: float, size: float) -> Child:
    """The shape says what the colour says: a circle is the row that the others are compared with."""
    kind = f"mark c-{KINDS[min(number, len(KINDS) - 1)]}"
    if number == 0:
        return tag("circle", cx=x, cy=y, r=size, class_=kind)
    return tag("rect", x=x - size * 0.9, y=y - size * 0.9, width=size * 1.8, height=size * 1.8, class_=kind)
