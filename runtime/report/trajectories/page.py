"""`polymath trajectories view`: a set of episodes on one page that needs nothing but itself, and no network.

The page holds data and one script of ours. The data is JSON in which `<` is written as an escape, so that no text of an episode can
end it; the script writes texts as text only, never as markup; the page's policy lets nothing run but that script, by its hash.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ....specs.diagnostics import ExitCode, UserError
from ...files import full_disk_is_clear
from ..markup import Markup, tag
from .episodes import Episode

HERE = Path(__file__).parent


def write_page(path: Path, title: str, episodes: Iterable[Episode], *, counted_by: str, most: int) -> dict[str, Any]:
    """Write the page; of the first `most` episodes with their timelines, of all with their numbers. Returns the counts.

    Raises:
        UserError: there is no episode (exit 3), or the disk is full.
    """
    facts: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    for episode in episodes:
        facts.append(episode.facts)
        if len(contents) < most:
            contents.append(episode.content)
    if not facts:
        raise UserError(f"{title} holds no episode", exit_code=ExitCode.SPEC, fix="self-play and graph-import add some")
    text = render(title, {"counted_by": counted_by, "facts": facts, "contents": contents})
    with full_disk_is_clear(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f".staging-{path.name}")
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    return {"episodes": len(facts), "timelines": len(contents), "tokens": sum(one["tokens"] for one in facts)}


def render(title: str, data: dict[str, Any]) -> str:
    """The whole page."""
    style = (HERE.parent / "style.css").read_text(encoding="utf-8") + (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", f"{title} · Polymath"),
        Markup(f"<style>{style}</style>"),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("h1", title),
            tag("p", "Trajectories: what was asked, thought, done and observed, and what of it is trained."),
        ),
        tag("main", tag("noscript", "This page draws itself with a script of its own."), id="main"),
        tag("footer", "Written by Polymath. Nothing on this page is loaded from elsewhere."),
        Markup(f'<script type="application/json" id="data">{safe_json(data)}</script>'),
        Markup(f"<script>{script}</script>"),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def safe_json(value: Any) -> Markup:
    """JSON that no HTML parser takes for anything but text, whatever it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(escaped.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode("utf-8", "replace").decode())
