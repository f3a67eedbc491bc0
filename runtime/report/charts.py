"""Charts as inline SVG. Colours are CSS variables of the page, so that they follow the reader's light or dark preference.

Every series has a shape of its own beside its colour, and every chart a title and a description for readers who do not see it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Child, Markup, tag

Points = Sequence[tuple[float, float]]

ROW_NAMES = {"base": "base", "sft": "SFT", "sft_continued": "SFT continued", "teacher": "teacher", "student": "student"}
MOST_POINTS = 240  # of a curve; longer ones are averaged, because a screen shows no more
WIDTH = 1000


def score_chart(scoreboard: Mapping[str, Any]) -> Markup:
    """Scores of every model in every domain, with their intervals."""
    domains: Mapping[str, Mapping[str, Any]] = scoreboard["domains"]
    rows = [row for row in ROW_NAMES if any(domain[row] is not None for domain in domains.values())]
    pitch, left, top = 17, 170, 26
    band = pitch * len(rows) + 18
    height = top + band * len(domains) + 34
    axis = Scale(0.0, 1.0, left, WIDTH - 60)
    marks: list[Child] = [_ticks(axis, top, height - 34, "{:.0%}")]
    for place, (name, domain) in enumerate(domains.items()):
        y0 = top + band * place
        marks.append(tag("rect", x=0, y=y0, width=WIDTH, height=band, class_="band" if place % 2 else "band-off"))
        marks.append(tag("text", name, x=12, y=y0 + band / 2 + 4, class_="row-name"))
        for index, row in enumerate(rows):
            if domain[row] is None:
                continue
            y = y0 + 9 + pitch * (index + 0.5)
            low, high = domain["intervals"][row]
            label = f"{name}, {ROW_NAMES[row]}: {domain[row]:.1%} ({low:.1%} to {high:.1%}), {domain['episodes'][row]} episodes"
            marks.append(_whisker(axis, domain[row], low, high, y, row, label))
            # On the left of a mark that sits at the right end, so that the number stays on the page.
            at_end = high > 0.93
            x = axis(low) - 8 if at_end else axis(high) + 8
            marks.append(tag("text", f"{domain[row]:.1%}", x=x, y=y + 4, class_="value", text_anchor="end" if at_end else "start"))
    return tag(
        "div", _legend(rows), svg(WIDTH, height, "Scores by domain", "Share of held-out tasks solved, with 95 % intervals.", marks)
    )


def gain_chart(scoreboard: Mapping[str, Any]) -> Markup | None:
    """Recovered gain per domain and its mean; None where no domain has one."""
    rows = [(name, domain["recovered_gain"], domain["recovered_gain_ci95"]) for name, domain in scoreboard["domains"].items()]
    rows = [row for row in rows if row[1] is not None]
    if not rows:
        return None
    if scoreboard["mean_recovered_gain"] is not None:
        rows.append(("mean", scoreboard["mean_recovered_gain"], scoreboard["mean_recovered_gain_ci95"]))
    ends = [0.0, 1.1, *(value for _, value, _ in rows), *(end for _, _, interval in rows if interval for end in interval)]
    pitch, left, top = 34, 170, 40
    height = top + pitch * len(rows) + 34
    # A domain whose teacher gained next to nothing has an interval without end; it is cut off at the edge of the chart.
    axis = Scale(max(-1.0, min(ends)), min(2.0, max(ends)), left, WIDTH - 150)
    marks: list[Child] = [_ticks(axis, top, height - 34, "{:.4g}")]
    for value, label in ((0.0, "SFT"), (1.0, "its teacher")):
        marks.append(tag("line", x1=axis(value), x2=axis(value), y1=top - 8, y2=height - 34, class_="reference"))
        marks.append(tag("text", label, x=axis(value), y=top - 14, class_="tick", text_anchor="middle"))
    for index, (name, value, interval) in enumerate(rows):
        y = top + pitch * (index + 0.5)
        low, high = interval or (value, value)
        text = f"{value:.2f}" + (f"  [{low:.2f}, {high:.2f}]" if interval else "  (no interval)")
        if name == "mean":
            marks.append(tag("rect", x=0, y=y - pitch / 2, width=WIDTH, height=pitch, class_="band"))
        marks.append(tag("text", name, x=12, y=y + 4, class_="row-name"))
        marks.append(_whisker(axis, value, low, high, y, "student", f"{name}: recovered gain {text}"))
        marks.append(tag("text", text, x=WIDTH - 136, y=y + 4, class_="value"))
    return svg(WIDTH, height, "Recovered gain", "(student - SFT) / (teacher - SFT) by domain, with 95 % intervals.", marks)


def line_chart(title: str, series: Mapping[str, Points], *, unit: str = "step", floor: float | None = None) -> Markup:
    """One or more curves over optimizer steps. `floor` is a value the vertical axis starts at or below."""
    width, height, left, bottom, top, right = 340, 190, 46, 26, 34, 12
    curves = {name: thinned(points) for name, points in series.items() if points}
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points] + ([] if floor is None else [floor])
    y_low, y_high = padded(min(ys), max(ys))
    across = Scale(min(xs), max(max(xs), min(xs) + 1), left, width - right)
    up = Scale(y_low, y_high, height - bottom, top)
    marks: list[Child] = []
    for tick in nice_ticks(y_low, y_high, 4):
        marks.append(tag("line", x1=left, x2=width - right, y1=up(tick), y2=up(tick), class_="grid"))
        marks.append(tag("text", f"{tick:.4g}", x=left - 6, y=up(tick) + 4, class_="tick", text_anchor="end"))
    for tick in nice_ticks(across.low, across.high, 4):
        marks.append(tag("text", f"{tick:.4g}", x=across(tick), y=height - 8, class_="tick", text_anchor="middle"))
    for index, points in enumerate(curves.values()):
        path = " ".join(f"{'M' if n == 0 else 'L'}{across(x):.1f},{up(y):.1f}" for n, (x, y) in enumerate(points))
        marks.append(tag("path", d=path, class_=f"curve curve-{index % 3}"))
    if len(curves) > 1:
        for index, name in enumerate(curves):
            x = width - right - 94 * (len(curves) - index)
            marks.append(tag("line", x1=x, x2=x + 14, y1=14, y2=14, class_=f"curve curve-{index % 3}"))
            marks.append(tag("text", name, x=x + 18, y=18, class_="tick"))
    ends = ", ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in curves.items())
    marks.append(tag("text", title, x=6, y=18, class_="chart-title"))
    return svg(width, height, title, f"{ends} over {len(xs) // max(1, len(curves))} points by {unit}.", marks)


class Scale:
    """Maps values to pixels and keeps them inside."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 2)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two."""
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(width: float, height: float, title: str, description: str, children: Child) -> Markup:
    head = (tag("title", title), tag("desc", description))
    return tag("svg", head, children, viewBox=f"0 0 {width} {height}", role="img", aria_label=f"{title}. {description}")


def _ticks(axis: Scale, top: float, bottom: float, form: str) -> list[Child]:
    marks: list[Child] = []
    for tick in nice_ticks(axis.low, axis.high, 5):
        marks.append(tag("line", x1=axis(tick), x2=axis(tick), y1=top, y2=bottom, class_="grid"))
        marks.append(tag("text", form.format(tick), x=axis(tick), y=bottom + 20, class_="tick", text_anchor="middle"))
    return marks


def _whisker(axis: Scale, value: float, low: float, high: float, y: float, row: str, label: str) -> Markup:
    line = tag("line", x1=axis(low), x2=axis(high), y1=y, y2=y, class_=f"whisker c-{row}")
    return tag("g", tag("title", label), line, _shape(row, axis(value), y))


def _shape(row: str, x: float, y: float) -> Markup:
    name = f"mark c-{row}"
    match row:
        case "sft":
            return tag("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_=name)
        case "sft_continued":
            return tag("rect", x=x - 4, y=y - 4, width=8, height=8, class_=f"{name} hollow")
        case "teacher":
            return tag("path", d=f"M{x},{y - 6.5} L{x + 6.5},{y} L{x},{y + 6.5} L{x - 6.5},{y} Z", class_=name)
        case "student":
            return tag("circle", cx=x, cy=y, r=6, class_=name)
        case _:
            return tag("circle", cx=x, cy=y, r=4, class_=f"{name} hollow")


def _legend(rows: Sequence[str]) -> Markup:
    items = [
        tag("li", tag("svg", _shape(row, 8, 8), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true"), " ", ROW_NAMES[row])
        for row in rows
    ]
    return tag("ul", items, class_="legend")


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of a stretch."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in stretches]


def padded(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis with some room beyond the values."""
    room = (high - low) * 0.06 or max(abs(high), 1e-3) * 0.1
    return low - room, high + room
