"""A drawing of the report's as a file of its own."""

import re
from pathlib import Path

from ..report.markup import Markup

STYLE_SHEET = Path(__file__).parents[1] / "report" / "style.css"
USED = (
    "page",
    "headline",
    "tick",
    "value",
    "row-name",
    "chart-title",
    "grid",
    "reference",
    "whisker",
    "mark",
    "c-sft",
    "c-student",
    "c-teacher",
    "c-sft_continued",
    "line",
)
STYLE = """.page { fill: var(--card); } .line { fill: none; }
.headline { stroke: var(--student); stroke-width: 1.2; stroke-dasharray: 2 3; }"""


def standing_alone(drawn: Markup) -> str:
    """An SVG of the report's as a file. It brings what it uses of the report's style, with the light colours written out: many
    programs that show an SVG know no variables."""
    sheet = STYLE_SHEET.read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", sheet.partition("@media")[0]))
    rules = [
        f"{selector.strip()} {{{body}}}"
        for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", f"{sheet}\n{STYLE}")
        for selector in selectors.split(",")
        if selector.strip().removeprefix(".") in USED
    ]
    text = "text {fill: var(--ink); font: 13px system-ui, 'Segoe UI', Roboto, sans-serif;}"
    style = re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], "\n".join([text, *rules]))
    inner = f"<style>{style}</style>"
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace("<title>", f"{inner}<title>", 1) + "\n"
