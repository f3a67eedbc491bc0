"""The page's section on what distillation watched: one small chart per number, one line per domain, alarms where they fired.

Every chart says what its number means and what to do where it is bad, in the words of the alarms.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..monitors import MONITORS, TRAINED_SAMPLES, TRAINED_TOKENS, Monitor
from .charts import Points, Scale, nice_ticks, padded, svg, thinned
from .facts import JobFacts
from .markup import Child, Markup, tag

WIDTH, HEIGHT = 520, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 118, 14, 26
POINTS = 60  # of a line; a step of few rollouts is noisy, and each point is the mean of some
NUM_STYLES = 8  # of lines, in style.css
LABEL_PITCH = 13


def watched_section(one: JobFacts, routing: Mapping[str, str]) -> Markup | None:
    """All of it for one distillation job; None where it measured nothing yet."""
    domains = [name for name in sorted(routing) if any(one.curve(f"{monitor.metric}.{name}") for monitor in MONITORS)]
    charts: list[Child] = [chart for monitor in MONITORS if (chart := _monitor_chart(one, monitor, domains)) is not None]
    if not charts:
        return None
    legend = [
        tag("li", _swatch(place), " ", tag("b", name), tag("span", f" taught by {routing[name]}", class_="soft"))
        for place, name in enumerate(domains)
    ]
    return tag(
        "section",
        tag("h2", "Distillation, watched"),
        tag(
            "p",
            "Nothing here is optimised; it is what goes wrong first when distillation goes wrong. By optimizer step, one line per "
            "domain; a point is the mean of a few steps in a long run. A red ring is a step in which an alarm fired.",
            class_="soft",
        ),
        tag("ul", legend, class_="legend"),
        _alarms(one),
        tag("div", charts, class_="watched"),
        _ledger(one, domains),
    )


def _monitor_chart(one: JobFacts, monitor: Monitor, domains: Sequence[str]) -> Markup | None:
    fired = [event for event in one.alarms if event["alarm"] == monitor.alarm]
    series: dict[str, Points] = {}
    for name in domains:
        points = dict(one.curve(f"{monitor.metric}.{name}"))
        # A step that an alarm stopped has no line of metrics; the alarm knows its value.
        points |= {float(event["step"]): event["value"] for event in fired if event["domain"] == name}
        series[name] = sorted(points.items())
    if not any(series.values()):
        return None
    alarms = one.job.settings["stage"].get("alarms", {})
    return tag(
        "figure",
        domain_chart(
            monitor.title,
            series,
            alarm=alarms.get(monitor.alarm) if monitor.alarm else None,
            fired={(event["step"], event["domain"]) for event in fired},
            limits=(0.0, 1.0) if monitor.is_share else (0.0, None),
        ),
        tag("figcaption", monitor.means, " ", tag("span", _code(monitor.remedy), class_="soft")),
    )


def domain_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    alarm: Mapping[str, Any] | None = None,
    fired: set[tuple[int, str]] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> Markup:
    """One line per domain over steps, labelled at its end.

    Args:
        series: points by domain; a domain without points keeps its colour and has no line.
        alarm: as the spec has it; its threshold is drawn.
        fired: steps and domains of alarms that fired.
        limits: values that the axis never leaves, because the number cannot.
    """
    xs = [x for points in series.values() for x, _ in points]
    lines = {name: thinned(points, POINTS) for name, points in series.items()}
    ys = [y for points in lines.values() for _, y in points]
    side = next((name for name in ("below", "above") if alarm and name in alarm), None)
    threshold = alarm[side] if alarm and side else None
    if threshold is not None and min(ys) - (max(ys) - min(ys)) <= threshold <= max(ys) + (max(ys) - min(ys)):
        ys.append(threshold)  # where it is near enough to be seen without flattening the lines
    low, high = padded(min(ys), max(ys))
    low = low if limits[0] is None else max(low, limits[0])
    high = high if limits[1] is None else min(high, limits[1])
    high = high if high > low else low + 1e-9
    across = Scale(min(xs), max(max(xs), min(xs) + 1), LEFT, WIDTH - RIGHT)
    up = Scale(low, high, HEIGHT - BOTTOM, TOP + 22)
    marks: list[Child] = [tag("text", title, x=6, y=TOP + 2, class_="chart-title")]
    for tick in nice_ticks(low, high, 4):
        marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(tick), y2=up(tick), class_="grid"))
        marks.append(tag("text", f"{tick:.4g}", x=LEFT - 6, y=up(tick) + 4, class_="tick", text_anchor="end"))
    for tick in nice_ticks(across.low, across.high, 5):
        marks.append(tag("text", f"{tick:.4g}", x=across(tick), y=HEIGHT - 8, class_="tick", text_anchor="middle"))
    if threshold is not None and low <= threshold <= high:
        marks.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(threshold), y2=up(threshold), class_="threshold"))
        text = f"alarm {side} {threshold:g}"
        marks.append(tag("text", text, x=LEFT + 4, y=up(threshold) + (12 if side == "below" else -4), class_="threshold-name"))
    for place, points in enumerate(lines.values()):
        if points:
            path = " ".join(f"{'M' if n == 0 else 'L'}{across(x):.1f},{up(y):.1f}" for n, (x, y) in enumerate(points))
            marks.append(tag("path", d=path, class_=f"curve d-{place % NUM_STYLES}"))
        if len(points) == 1:
            marks.append(tag("circle", cx=across(points[0][0]), cy=up(points[0][1]), r=2.5, class_=f"dot d-{place % NUM_STYLES}"))
    for name, points in lines.items():
        size = -(-len(series[name]) // max(1, len(points))) or 1  # steps of a point
        for n, (x, y) in enumerate(points):
            if any((step, name) in (fired or ()) for step, _ in series[name][n * size : (n + 1) * size]):
                marks.append(tag("circle", cx=across(x), cy=up(y), r=4, class_="alarm"))
    ends = {name: up(points[-1][1]) for name, points in lines.items() if points}
    for name, y in _apart(ends).items():
        place = list(lines).index(name)
        end = across(lines[name][-1][0])
        marks.append(tag("line", x1=end + 2, x2=WIDTH - RIGHT + 10, y1=ends[name], y2=y, class_=f"leader d-{place % NUM_STYLES}"))
        marks.append(tag("text", name, x=WIDTH - RIGHT + 13, y=y + 4, class_=f"line-name t-{place % NUM_STYLES}"))
    told = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in lines.items() if points)
    return svg(WIDTH, HEIGHT, title, f"{told}; alarms fired in {len(fired or ())} places.", marks)


def _apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Heights of labels near the wanted ones, in their order, that do not overlap."""
    placed: dict[str, float] = {}
    for name, y in sorted(wanted.items(), key=lambda item: item[1]):
        placed[name] = max(y, max(placed.values(), default=-LABEL_PITCH) + LABEL_PITCH)
    too_far = max(placed.values(), default=0.0) - (HEIGHT - 8)
    lowest = HEIGHT - 8.0
    if too_far > 0:
        for name in reversed(placed):
            placed[name] = min(placed[name], lowest)
            lowest = placed[name] - LABEL_PITCH
    return placed


def _alarms(one: JobFacts) -> Markup:
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for event in one.alarms:
        together.setdefault((event["alarm"], event["domain"]), []).append(event)
    if not together:
        return tag("p", "No alarm fired.")
    rows = []
    for (alarm, domain), events in sorted(together.items()):
        values = [event["value"] for event in events]
        worst = min(values) if events[0]["side"] == "below" else max(values)
        cells = (
            domain,
            events[-1]["action"],
            f"{len(events)}, from {events[0]['step']} to {events[-1]['step']}",
            f"{worst:.4g}",
            f"{events[-1]['side']} {events[-1]['threshold']:g}",
        )
        rows.append(tag("tr", tag("th", alarm, scope="row"), [tag("td", cell) for cell in cells]))
    heads = [
        tag("th", name, scope="col") for name in ("alarm", "domain", "action", "steps it fired in", "worst value", "threshold")
    ]
    return tag("div", tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows)), class_="scroll alarms")


def _ledger(one: JobFacts, domains: Sequence[str]) -> Markup | None:
    """How many tokens and rollouts of each domain weights were moved by."""
    totals = {
        name: tuple(round(sum(value for _, value in one.curve(f"{metric}.{name}"))) for metric in (TRAINED_TOKENS, TRAINED_SAMPLES))
        for name in domains
    }
    most = max((tokens for tokens, _ in totals.values()), default=0) or 1
    pitch, left, right = 24, 130, 230
    marks: list[Child] = []
    for place, (name, (tokens, samples)) in enumerate(totals.items()):
        y = 6 + pitch * place
        length = (1000 - left - right) * tokens / most
        marks.append(tag("text", name, x=left - 10, y=y + 13, class_="row-name", text_anchor="end"))
        marks.append(tag("rect", x=left, y=y, width=round(length, 1), height=16, rx=2, class_=f"bar f-{place % NUM_STYLES}"))
        marks.append(tag("text", f"{tokens:,} tokens in {samples:,} rollouts", x=left + length + 8, y=y + 13, class_="value"))
    skipped = round(sum(value for _, value in one.curve("update_skipped")))
    said = f" {skipped} updates were skipped by an alarm; their tokens are not counted." if skipped else ""
    return tag(
        "figure",
        svg(1000, pitch * len(totals) + 10, "Trained tokens by domain", "Over all steps.", marks),
        tag(
            "figcaption",
            tag("b", "Ledger. "),
            "Tokens and rollouts of each domain that moved weights. Domains weigh the same however long their rollouts are.",
            said,
        ),
        class_="ledger",
    )


def _code(text: str) -> list[Child]:
    """Text with what stands between backticks as code."""
    return [tag("code", part) if n % 2 else part for n, part in enumerate(text.split("`"))]


def _swatch(place: int) -> Markup:
    line = tag("line", x1=0, x2=26, y1=8, y2=8, class_=f"curve d-{place % NUM_STYLES}")
    return tag("svg", line, viewBox="0 0 26 16", width=26, height=16, aria_hidden="true", class_="swatch")
