"""`report.html`: a run on one page that needs nothing but itself, no script and no network.

What it shows: the job graph, the scoreboard, the recovered gain, what distillation watched, the curves of every training job, what
became of the data, who demonstrated it, and the time each job took. It is rebuilt from the run's files whenever `write_report` is
called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import full_disk_is_clear
from ..launch.progress import duration
from .charts import ROW_NAMES, gain_chart, line_chart, score_chart
from .facts import JobFacts, RunFacts, read_run
from .graph import job_graph
from .markup import Child, Markup, tag
from .scoreboard import write_scoreboard
from .watched import watched_section

REPORT = "report.html"
CURVES = (  # title, what the names of the metrics are shown as, value the axis starts at
    ("loss", {"loss": "loss"}, None),
    ("coverage", {"coverage_mean": "mean", "coverage_p05": "5 % quantile"}, None),
    ("reward", {"reward_mean": "mean"}, None),
)


def write_report(run_dir: Path) -> Path:
    """Write `scoreboard.json` and `report.html` of a run, finished or not; returns the page's path.

    Raises:
        UserError: the folder is not a run, or the disk is full.
    """
    facts = read_run(run_dir)
    scoreboard = write_scoreboard(run_dir)
    path = run_dir / REPORT
    with full_disk_is_clear(path):
        staging = path.with_name(f".staging-{REPORT}")
        staging.write_text(render(facts, scoreboard), encoding="utf-8")
        staging.replace(path)
    return path


def render(facts: RunFacts, scoreboard: Mapping[str, Any]) -> str:
    """The whole page."""
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", f"{facts.plan.name} · Polymath"),
        Markup(f"<style>{style}</style>"),
    )
    main = tag(
        "main",
        _demonstrators(facts),
        _jobs(facts),
        _scores(scoreboard),
        _gains(scoreboard),
        [watched_section(one, facts.routing) for one in facts.jobs.values() if one.job.kind == "distill"],
        _curves(facts),
        _data(facts),
        _timings(facts),
    )
    body = tag("body", _header(facts, scoreboard), main, tag("footer", "Written by Polymath from the files beside this page."))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _header(facts: RunFacts, scoreboard: Mapping[str, Any]) -> Markup:
    finished = sum(one.finished for one in facts.jobs.values())
    total = sum(one.seconds or 0.0 for one in facts.jobs.values())
    mean, interval = scoreboard["mean_recovered_gain"], scoreboard["mean_recovered_gain_ci95"]
    if mean is not None:
        gain, spread = f"{mean:.2f}", "" if interval is None else f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    elif scoreboard["complete"] and facts.routing:
        gain, spread = "undefined", "a teacher gained nothing over SFT"
    else:
        gain, spread = "-", "not evaluated yet"
    means = scoreboard["means"]
    return tag(
        "header",
        tag("h1", facts.plan.name),
        tag("p", "Many teachers, one student: full-domain SFT, domain teachers, routed on-policy distillation.", class_="soft"),
        tag("p", "recipe ", tag("code", facts.plan.recipe_digest), " · plan ", tag("code", facts.plan.exact_digest), class_="meta"),
        tag(
            "dl",
            _figure("mean recovered gain", gain, spread),
            _figure("student, mean of domains", _percent(means["student"]), f"its teachers {_percent(means['teacher'])}"),
            _figure("SFT, mean of domains", _percent(means["sft"]), f"continued {_percent(means['sft_continued'])}"),
            _figure("jobs finished", f"{finished} of {len(facts.jobs)}", f"in {duration(total)}"),
            class_="figures",
        ),
    )


def _figure(name: str, value: str, note: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", note)))


def _demonstrators(facts: RunFacts) -> Markup | None:
    """Said openly and before any number: what SFT learns from is not what an expert would do."""
    writing = [one.job.settings["domains"] for one in facts.jobs.values() if one.job.kind == "synthesize"]
    rows: list[Child] = []
    for name, domain in (item for domains in writing for item in domains.items()):
        for source in domain["trajectories"]:
            if source["habit_rate"] or source["slip_rate"]:
                cells = (source["name"], source["synthesize"], f"{source['habit_rate']:.0%}", f"{source['slip_rate']:.0%}")
                rows.append(tag("tr", tag("th", name, scope="row"), [tag("td", cell) for cell in cells]))
    if not rows:
        return None
    columns = ("domain", "source", "demonstrations", "wrong habit on hard tasks", "actions that slip")
    return tag(
        "section",
        tag("h2", "SFT learns from an imperfect demonstrator"),
        tag(
            "p",
            "These demonstrations were written by a program that is wrong on purpose: on the harder tasks it follows a fixed wrong "
            "habit at the rate below, and its actions slip at random. A perfect one would leave the teachers nothing to gain. SFT "
            "is not handicapped otherwise.",
            " The row “SFT continued” shows what more of the same data gives." if "sft_continued" in facts.jobs else "",
        ),
        tag("details", tag("summary", "Rates by domain"), _table(columns, rows)),
        class_="note",
    )


def _jobs(facts: RunFacts) -> Markup:
    return tag(
        "section",
        tag("h2", "Three stages"),
        tag(
            "p",
            "Blue: supervised fine-tuning of the student. Orange: domain teachers. Violet: distillation into the student. "
            "Grey: everything else. A dashed box is not finished.",
            class_="soft",
        ),
        tag("div", job_graph(facts), class_="graph"),
    )


def _scores(scoreboard: Mapping[str, Any]) -> Markup:
    domains: Mapping[str, Mapping[str, Any]] = scoreboard["domains"]
    if not domains:
        return tag("section", tag("h2", "Scoreboard"), tag("p", "No model has been evaluated yet.", class_="soft"))
    rows: list[Child] = []
    for row, name in ROW_NAMES.items():
        if row == "teacher":
            teachers = dict.fromkeys(domain["teacher_name"] for domain in domains.values() if domain["teacher_name"])
            rows += [_score_row(f"teacher {teacher}", "teacher", domains, None, only=teacher) for teacher in teachers]
        elif any(domain[row] is not None for domain in domains.values()):
            rows.append(_score_row(name, row, domains, scoreboard["means"][row]))
    if any(domain["recovered_gain"] is not None for domain in domains.values()):
        cells = [_gain_cell(domain["recovered_gain"], domain["recovered_gain_ci95"]) for domain in domains.values()]
        mean = _gain_cell(scoreboard["mean_recovered_gain"], scoreboard["mean_recovered_gain_ci95"])
        rows.append(tag("tr", tag("th", "recovered gain", scope="row"), cells, mean, class_="gain"))
    return tag(
        "section",
        tag("h2", "Scoreboard"),
        tag(
            "p",
            "Share of held-out tasks solved, with the 95 % Wilson interval and the number of episodes n; each episode is another "
            "task, and every model tries the same ones. Teachers are shown on the domains that are routed to them.",
            class_="soft",
        ),
        _table(("model", *domains, "mean"), rows),
        score_chart(scoreboard),
    )


def _score_row(
    name: str, row: str, domains: Mapping[str, Mapping[str, Any]], mean: float | None, only: str | None = None
) -> Markup:
    cells: list[Child] = []
    for domain in domains.values():
        if domain[row] is None or (only is not None and domain["teacher_name"] != only):
            cells.append(tag("td"))
            continue
        low, high = domain["intervals"][row]
        counts = ("cut", domain["truncated"][row]), ("forced", domain["forced"][row])
        ended = "".join(f", {count} {how}" for how, count in counts if count)
        note = f"{low:.1%} to {high:.1%}", tag("br"), f"n {domain['episodes'][row]}", ended
        cells.append(tag("td", f"{domain[row]:.1%}", tag("small", note)))
    return tag("tr", tag("th", name, scope="row"), cells, tag("td", "" if mean is None else _percent(mean)), class_=row)


def _gain_cell(value: float | None, interval: list[float] | None) -> Markup:
    if value is None:
        return tag("td", "-")
    return tag("td", f"{value:.2f}", tag("small", f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "no interval"))


def _gains(scoreboard: Mapping[str, Any]) -> Markup | None:
    chart = gain_chart(scoreboard)
    if chart is None:
        return None
    return tag(
        "section",
        tag("h2", "Recovered gain"),
        tag(
            "p",
            "(student - SFT) / (teacher - SFT): 0 is the SFT model, 1 the domain's teacher. Whiskers are 95 % intervals of a "
            "paired bootstrap over tasks.",
            class_="soft",
        ),
        chart,
    )


def _curves(facts: RunFacts) -> Markup | None:
    charts = [chart for one in facts.jobs.values() for chart in _job_curves(one)]
    if not charts:
        return None
    return tag(
        "section",
        tag("h2", "Training curves"),
        tag("p", "By optimizer step. Coverage is the student's mass on its teacher's support.", class_="soft"),
        tag("div", [tag("div", chart) for chart in charts], class_="small-charts"),
    )


def _job_curves(one: JobFacts) -> list[Markup]:
    charts: list[Markup] = []
    for title, names, floor in CURVES:
        series = {shown: one.curve(name) for name, shown in names.items()}
        series = {shown: points for shown, points in series.items() if points}
        if series:
            charts.append(line_chart(f"{one.job.id} · {title}", series, floor=floor))
    return charts


def _data(facts: RunFacts) -> Markup | None:
    found = (_contamination(facts), _sources(facts), _demonstrations(facts), _rollouts(facts))
    tables = [table for table in found if table is not None]
    return tag("section", tag("h2", "Data"), tables) if tables else None


def _contamination(facts: RunFacts) -> Child:
    found = next((one.result["contamination"] for one in facts.jobs.values() if one.result and "contamination" in one.result), None)
    if found is None:
        return None
    how = "the same words" if found["threshold"] is None else f"a likeness of {found['threshold']:g} or more"
    tasks, rows = sum(found["heldout_tasks"].values()), sum(one["rows"] for one in found["sources"])
    looked = f"{rows:,} rows of training data were looked into for the {tasks:,} tasks of the evaluations, by {how}"
    if found["clean"]:
        return tag("p", f"{looked}: none holds one.", class_="soft")
    dirty = [one for one in found["sources"] if one["contaminated_rows"]]
    cells = [(Path(one["source"]).name, one["rows"], one["contaminated_rows"]) for one in dirty]
    table = [tag("tr", tag("th", name, scope="row"), [tag("td", count) for count in counts]) for name, *counts in cells]
    text = f"{looked}. These hold some, so the scores are not of unseen tasks:"
    return tag("p", text, class_="soft"), _table(("source", "rows", "rows with tasks of the evaluations"), table)


def _sources(facts: RunFacts) -> Child:
    rows: list[Child] = []
    for one in facts.jobs.values():
        for source in (one.result or {}).get("sources", ()):
            cells = (tag("td", source["rows"]), tag("td", source["kept"]))
            reasons = [tag("td", _reasons(source[verb]), class_="text") for verb in ("filtered", "truncated")]
            where = tag("td", Path(source["url"]).name, class_="text")
            rows.append(tag("tr", tag("th", one.job.id, scope="row"), where, cells, reasons))
    if not rows:
        return None
    columns = ("job", "source", "rows", "kept", "left out", "cut short")
    text = "What became of the rows that SFT jobs read. The beginning of a row that is cut is kept."
    return tag("p", text, class_="soft"), _table(columns, rows, text_columns=(1, 4, 5))


def _demonstrations(facts: RunFacts) -> Child:
    rows: list[Child] = []
    for one in facts.jobs.values():
        for file, found in (one.result or {}).get("demonstrations", {}).items():
            solved = f"{found['solved'] / found['count']:.1%}"
            rows.append(
                tag("tr", tag("th", file, scope="row"), [tag("td", cell) for cell in (found["count"], found["tasks"], solved)])
            )
    if not rows:
        return None
    text = "What the worlds' demonstrators wrote, and how often they solved their task."
    return tag("p", text, class_="soft above"), _table(("demonstrations", "written", "of distinct tasks", "solved"), rows)


def _rollouts(facts: RunFacts) -> Child:
    rows: list[Child] = []
    for one in facts.jobs.values():
        result = one.result or {}
        if one.job.kind in ("grpo", "distill") and "episodes" in result:
            names = ("episodes", "truncated", "forced", "tokens", "trained_tokens")
            cells = [tag("td", f"{result[name]:,}" if name in result else "") for name in names]
            rows.append(tag("tr", tag("th", one.job.id, scope="row"), cells))
    if not rows:
        return None
    text = "What the on-policy jobs played. At a limit an episode is cut, and its beginning is trained on, or its answer is forced."
    return tag("p", text, class_="soft above"), _table(("job", "episodes", "cut short", "forced", "tokens", "trained tokens"), rows)


def _reasons(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


def _timings(facts: RunFacts) -> Markup:
    longest = max((one.seconds or 0.0 for one in facts.jobs.values()), default=0.0) or 1.0
    rows: list[Child] = []
    for one in facts.jobs.values():
        took = "" if one.seconds is None else duration(one.seconds)
        bar = tag("svg", _bar((one.seconds or 0.0) / longest), viewBox="0 0 200 10", aria_hidden="true", class_="bar")
        state = "finished" if one.finished else "not finished"
        cells = (tag("td", one.job.kind, class_="text"), tag("td", state, class_="text"), tag("td", took))
        rows.append(tag("tr", tag("th", one.job.id, scope="row"), cells, tag("td", bar, class_="text")))
    return tag(
        "section",
        tag("h2", "Time"),
        tag("p", "Wall time by job over all launches; the first job of a process pays for its start.", class_="soft"),
        _table(("job", "kind", "state", "time", ""), rows, text_columns=(1, 2, 4)),
    )


def _bar(share: float) -> Markup:
    return tag("rect", x=0, y=1, width=round(200 * share, 1), height=8, rx=2, class_="bar-fill")


def _table(columns: tuple[str, ...], rows: list[Child], text_columns: tuple[int, ...] = ()) -> Markup:
    heads = [tag("th", name, scope="col", class_="left" if index in text_columns else None) for index, name in enumerate(columns)]
    return tag("div", tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows)), class_="scroll")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
