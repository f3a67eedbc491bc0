"""A sweep's results as files: `sweep.json` with all figures, `sweep.md` with one table and `sweep.svg` with one plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..report.charts import WIDTH, Scale, nice_ticks, svg
from ..report.markup import Child, tag
from .axis_plot import axis_plot
from .picture import standing_alone

JSON, TABLE, PLOT = "sweep.json", "sweep.md", "sweep.svg"
HEADINGS = ("row", "seeds", "score, %", "recovered gain", "lowest domain", "trained tokens", "minutes")
LONGEST_TITLE = 44  # characters that fit beside the plot


def write_results(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write the three files, each whole or not at all."""
    write_json(folder / JSON, figures)
    write_text(folder / TABLE, table(figures))
    write_text(folder / PLOT, axis_plot(figures) if "axis" in figures else plot(figures))


def table(figures: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    headings = (*([figures["axis"]] if "axis" in figures else []), *HEADINGS)
    lines = [
        f"# {figures['sweep']}",
        "",
        "Recovered gain = (row - SFT) / (teacher - SFT), SFT and teachers of the first row at the same seed, mean over domains and "
        "seeds, with its 95 % bootstrap interval over held-out tasks. Score: mean over domains and seeds. Tokens and minutes: of "
        "the job that made the row's model, mean over seeds.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(_cells(row))} |" for row in figures["rows"]),
    ]
    if not figures["complete"]:
        measured = sum(run["measured"] for run in figures["runs"])
        lines += ["", f"Not complete: {measured} of {len(figures['runs'])} runs are measured."]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, row["seeds"]))
    lacking = len(row["seeds_planned"]) - len(row["seeds"])
    gain = row["recovered_gain"]
    lowest = "-" if gain["min_domain"] is None else f"{gain['min_domain']:.2f} ({row['lowest_domain']})"
    return [
        *([f"{row['at']:g}"] if "at" in row else []),
        row["title"].replace("|", "\\|"),
        (seeds + (f" ({lacking} to come)" if lacking else "")).strip(),
        "-" if row["mean_score"] is None else f"{row['mean_score']:.1%}".removesuffix("%"),
        gain_text(gain),
        lowest,
        "-" if row["trained_tokens"] is None else f"{row['trained_tokens']:,.0f}",
        "-" if row["minutes"] is None else f"{row['minutes']:.1f}",
    ]


def gain_text(gain: Mapping[str, Any]) -> str:
    """A recovered gain with its interval."""
    if gain["mean"] is None:
        return "-"
    return f"{gain['mean']:.3f}" + (f" [{gain['interval'][0]:.3f}, {gain['interval'][1]:.3f}]" if gain["interval"] else "")


def plot(figures: Mapping[str, Any]) -> str:
    """Rows as horizontal intervals, with lines where SFT, the teachers and the first row are. A page of its own, style included."""
    rows: list[Mapping[str, Any]] = figures["rows"]
    gains: list[Mapping[str, Any]] = [row["recovered_gain"] for row in rows if row["recovered_gain"]["mean"] is not None]
    ends = [0.0, 1.1, *(end for gain in gains for end in (gain["interval"] or [gain["mean"]]))]
    left, pitch, top, bottom = 330, 30, 58, 34
    height = top + pitch * len(rows) + bottom
    axis = Scale(max(-1.0, min(ends) - 0.03), min(2.0, max(ends)), left, WIDTH - 170)
    marks: list[Child] = [tag("rect", x=0, y=0, width=WIDTH, height=height, class_="page")]
    marks.append(tag("text", "recovered gain, 95 % interval", x=12, y=24, class_="chart-title"))
    for tick in nice_ticks(axis.low, axis.high, 6):
        marks.append(tag("line", x1=axis(tick), x2=axis(tick), y1=top - 6, y2=height - bottom, class_="grid"))
        marks.append(tag("text", f"{tick:.4g}", x=axis(tick), y=height - bottom + 20, class_="tick", text_anchor="middle"))
    for value, label in ((0.0, "SFT"), (1.0, "teachers")):
        marks.append(tag("line", x1=axis(value), x2=axis(value), y1=top - 6, y2=height - bottom, class_="reference"))
        marks.append(tag("text", label, x=axis(value), y=top - 14, class_="tick", text_anchor="middle"))
    headline = figures["recovered_gain"]["mean"]
    if headline is not None:
        marks.append(tag("line", x1=axis(headline), x2=axis(headline), y1=top - 6, y2=height - bottom, class_="headline"))
    for index, row in enumerate(rows):
        marks += _plot_row(row, axis, top + pitch * (index + 0.5), is_reference=row["row"] == figures["reference"])
    about = "Recovered gain of every row, (row - SFT) / (teacher - SFT), mean over domains and seeds, with 95 % intervals."
    return standing_alone(svg(WIDTH, height, f"Sweep {figures['sweep']}", about, marks))


def _plot_row(row: Mapping[str, Any], axis: Scale, y: float, *, is_reference: bool) -> list[Child]:
    gain, kind = row["recovered_gain"], "student" if is_reference else "sft"
    text = gain_text(gain)
    title = row["title"] if len(row["title"]) <= LONGEST_TITLE else f"{row['title'][: LONGEST_TITLE - 3]}..."
    marks: list[Child] = [tag("text", title, x=12, y=y + 4, class_="row-name")]
    if gain["mean"] is not None:
        low, high = gain["interval"] or (gain["mean"], gain["mean"])
        seeds = f"{len(row['seeds'])} seed{'' if len(row['seeds']) == 1 else 's'}"
        line = tag("line", x1=axis(low), x2=axis(high), y1=y, y2=y, class_=f"whisker c-{kind}")
        # The shape says what the colour says: a circle is the row that the others are compared with.
        x = axis(gain["mean"])
        mark = (
            tag("circle", cx=x, cy=y, r=6, class_=f"mark c-{kind}")
            if is_reference
            else tag("rect", x=x - 4.5, y=y - 4.5, width=9, height=9, class_=f"mark c-{kind}")
        )
        marks.append(tag("g", tag("title", f"{row['title']}: {text}, {seeds}"), line, mark))
    marks.append(tag("text", text if text != "-" else "to come", x=WIDTH - 156, y=y + 4, class_="value"))
    return marks
