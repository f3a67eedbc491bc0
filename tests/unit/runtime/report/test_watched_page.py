"""The page shows what distillation watched: a chart per number, a line per domain, alarms where they fired."""

import types
from html import escape
from itertools import pairwise
from typing import Any

from polymath.runtime.monitors import MONITORS
from polymath.runtime.report.facts import JobFacts
from polymath.runtime.report.watched import _apart, watched_section

ROUTING = {"search": "searcher", "tools": "operator", "<b>": "x"}


def facts(lines: list[dict[str, float]], alarms: tuple[dict[str, Any], ...] = ()) -> JobFacts:
    job: Any = types.SimpleNamespace(
        id="distill", settings={"stage": {"alarms": {"coverage_p05": {"below": 0.5, "action": "warn"}}}}
    )
    return JobFacts(job=job, finished=False, seconds=None, result=None, metrics=tuple(lines), alarms=alarms)


def fired(step: int, value: float) -> dict[str, Any]:
    return {
        "alarm": "coverage_p05", "domain": "search", "step": step, "value": value, "side": "below", "threshold": 0.5,
        "action": "warn",
    }  # fmt: skip


def line(step: int, coverage: float, *domains: str) -> dict[str, float]:
    numbers = {f"{monitor.metric}.{domain}": coverage for monitor in MONITORS for domain in domains}
    counts = {f"trained_{what}.{domain}": count for domain in domains for what, count in (("tokens", 1500.0), ("samples", 4.0))}
    return {"step": step, **numbers, **counts}


def test_every_number_has_a_chart_that_says_what_it_means_and_what_to_do() -> None:
    page = watched_section(facts([line(step, 0.8, "search", "tools") for step in (1, 2, 3)]), ROUTING)
    assert page is not None
    assert page.count("<figure>") == len(MONITORS)
    assert all(escape(monitor.title) in page and escape(monitor.means) in page for monitor in MONITORS)
    assert "taught by searcher" in page and "taught by operator" in page and "&lt;b&gt;" not in page  # a domain without a number
    assert "4,500 tokens in 12 rollouts" in page
    assert "No alarm fired." in page and 'class="alarm"' not in page


def test_alarms_are_marked_where_they_fired_and_listed_with_their_worst_value() -> None:
    lines = [line(1, 0.8, "search", "tools"), line(2, 0.4, "search", "tools"), line(3, 0.45, "search", "tools")]
    page = watched_section(facts(lines, (fired(2, 0.4), fired(3, 0.45))), ROUTING)
    assert page is not None and page.count('class="alarm"') == 2
    assert "2, from 2 to 3" in page and "<td>0.4</td>" in page and "alarm below 0.5" in page


def test_a_step_that_an_alarm_stopped_is_shown_though_it_left_no_line_of_metrics() -> None:
    page = watched_section(facts([line(1, 0.8, "search")], (fired(2, 0.2),)), ROUTING)
    assert page is not None and page.count('class="alarm"') == 1


def test_a_domain_that_is_absent_from_some_steps_breaks_nothing_and_a_run_without_numbers_has_no_section() -> None:
    lines = [line(1, 0.8, "search"), line(2, 0.8, "tools"), line(3, 0.8)]
    assert watched_section(facts(lines), ROUTING) is not None
    assert watched_section(facts([{"step": 1, "loss": 0.5}]), ROUTING) is None


def test_labels_never_overlap_and_stay_on_the_chart() -> None:
    placed = _apart({str(number): 200.0 for number in range(6)})
    heights = sorted(placed.values())
    assert all(b - a >= 13 for a, b in pairwise(heights)) and heights[-1] <= 208
