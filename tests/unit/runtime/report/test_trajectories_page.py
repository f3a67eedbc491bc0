"""The page of trajectories: complete in itself, hostile texts stay texts, filters and timelines work in a real browser."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from polymath.runtime.cli import main
from polymath.runtime.knowledge.branches import add_attempt
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.records import StepRecord, TaskRecord, TrajectoryRecord, write_records
from polymath.runtime.ledger import Ledger, LedgerSample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!-- \u2028 ]]> &lt;b&gt;"


def record(
    number: int, *, reward: float, tool: str = "search", text: str = "all is well", evidence: tuple[str, ...] = ()
) -> TrajectoryRecord:
    call = {"id": "call_1", "type": "function", "function": {"name": tool, "arguments": json.dumps({"query": f"words {number}"})}}
    return TrajectoryRecord(
        task=TaskRecord(
            instruction=f"question number {number}",
            domain="search" if number % 2 else "mail",
            key=f"key {number}",
            evidence=evidence,
        ),
        messages=(
            {"role": "user", "content": f"question number {number}"},
            {"role": "assistant", "content": "", "reasoning_content": f"thinking about {number}", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": text},
            {"role": "assistant", "content": f"answer {number}"},
        ),
        steps=(
            StepRecord(message=1, call=0, observation=2, verdict=1.0, evidence=evidence[:1]),
            StepRecord(message=3, verdict=reward),
        ),
        answer=f"answer {number}",
        reward=reward,
        provenance={"generator": "test", "licence": "MIT"},
    )


def view(folder: Path, *sources: str, arguments: tuple[str, ...] = ()) -> Path:
    page = folder / "page.html"
    assert main(["trajectories", "view", *sources, "-o", str(page), *arguments]) == 0
    return page


def seen(page: Path, state: str = "") -> str:
    """The page's own elements after its script ran, without the data and the script."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, f"file://{page}#{state}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return re.sub(r"<script[\s\S]*?</script>|<style>[\s\S]*?</style>", "", done.stdout)


@pytest.fixture
def trajectories(tmp_path: Path) -> str:
    path = tmp_path / "set.jsonl"
    records = [record(number, reward=float(number % 3 == 0), tool="send" if number == 4 else "search") for number in range(6)]
    write_records(str(path), [*records, record(7, reward=0.0, text=HOSTILE)])
    return str(path)


def test_the_page_needs_nothing_but_itself_and_no_text_can_end_its_data(tmp_path: Path, trajectories: str) -> None:
    text = view(tmp_path, trajectories).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 2 and "onerror" in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    policy = unescape(text.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0])
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["contents"][6]["turns"][2]["text"] == HOSTILE
    assert [one["outcome"] for one in data["facts"]] == ["solved", "failed", "failed", "solved", "failed", "failed", "failed"]
    assert all(0 < one["trained"] < one["tokens"] for one in data["facts"])
    turns = data["contents"][0]["turns"]
    assert [turn["trained"] for turn in turns] == [False, True, False, True] and turns[1]["thought"] == "thinking about 0"
    assert turns[1]["verdicts"] == [1.0] and turns[2]["tokens"] == len("all is well")


def test_a_large_set_keeps_its_numbers_and_bounds_its_timelines(
    tmp_path: Path, trajectories: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trajectories", "view", trajectories, "-o", str(tmp_path / "page.html"), "--limit", "2", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["episodes"], counts["timelines"]) == (7, 2)


@in_browser
def test_a_browser_shows_an_episode_as_a_timeline_and_runs_nothing_of_it(tmp_path: Path, trajectories: str) -> None:
    page = view(tmp_path, trajectories)
    shown = seen(page, "episode=6")
    assert "<title>set.jsonl · Polymath</title>" in shown and "<img" not in shown and "<script" not in shown
    for text in (
        "thinking about 7",
        "question number 7",
        '{ "query": "words 7" }',
        "answer 7",
        "step right",
        "step wrong",
        "trained: ",
    ):
        assert text in shown, text
    assert "&lt;/script&gt;&lt;script&gt;" in shown
    assert shown.count('class="turn trained"') == 2 and shown.count('class="turn"') == 2


@in_browser
def test_filters_choose_episodes_and_the_numbers_follow(tmp_path: Path, trajectories: str) -> None:
    page = view(tmp_path, trajectories)
    shown = seen(page, "outcome=solved")
    assert shown.count("data-episode=") == 2 and "<dd>2<small>of 7" in shown and "100.0 %" in shown
    assert seen(page, "tool=send").count("data-episode=") == 1
    assert seen(page, "text=WORDS%205").count("data-episode=") == 1
    shown = seen(page, "domain=search&text=nowhere")
    assert "No episode fits these filters." in shown and "Choose an episode." in shown


def test_a_graph_shows_what_was_refused_and_why_and_names_its_evidence(tmp_path: Path) -> None:
    with GraphStore.create(tmp_path / "graph.sqlite") as store:
        nodes = tuple(store.add("evidence", name, f"body of {name}") for name in ("Rhine", "Danube"))
        add_attempt(store, record(1, reward=1.0, evidence=nodes), accepted=True)
        add_attempt(store, record(2, reward=0.0), accepted=False, reason="shortcut")
        store.commit()
    text = view(tmp_path, str(tmp_path / "graph.sqlite")).read_text(encoding="utf-8")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [one["refused"] for one in data["facts"]] == ["", "shortcut"]
    evidence = data["contents"][0]["region"]["evidence"]
    assert [(one["name"], one["required"], one["consulted"]) for one in evidence] == [
        ("Rhine", True, True),
        ("Danube", True, False),
    ]
    assert data["contents"][0]["region"]["reads"] == [["search", nodes[0], 1]]


@in_browser
def test_a_browser_chooses_by_the_check_that_refused_and_says_what_it_does_not_draw(tmp_path: Path) -> None:
    with GraphStore.create(tmp_path / "graph.sqlite") as store:
        nodes = tuple(store.add("evidence", f"Page {number}", "text") for number in range(20))
        add_attempt(store, record(1, reward=1.0, evidence=nodes), accepted=True)
        for number, check in ((2, "consulted"), (3, "unambiguous"), (4, "consulted")):
            add_attempt(store, record(number, reward=1.0, evidence=nodes), accepted=False, reason=check)
        store.commit()
    shown = seen(view(tmp_path, str(tmp_path / "graph.sqlite")), "refused=consulted")
    assert shown.count("data-episode=") == 2 and shown.count('<span class="badge bad">consulted</span>') == 2
    assert "refused: consulted" in shown and "and 6 more pieces of evidence" in shown


def test_a_ledger_shows_what_the_policy_wrote(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "batches")
    text = "question" + "answer"
    sample = LedgerSample(
        **{"number": 0, "ids": tuple(text.encode()), "written": (False,) * 8 + (True,) * 6, "logprobs": (0.0,) * 8 + (-0.5,) * 6},
        **{"domain": "sums", "task_key": "1 + 1", "group": 3, "status": "COMPLETED", "reward": 1.0, "outcome": 1.0, "process": 0.5},
        **{"turns": 1, "interruptions": 0, "dropped": 0, "policy_version": 4},
    )
    ledger.write_part(0, 0, [sample])
    ledger.publish(0, 1)
    page = view(tmp_path, str(tmp_path / "batches")).read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    turns = data["contents"][0]["turns"]
    assert [(turn["role"], turn["tokens"], turn["trained"]) for turn in turns] == [("context", 8, False), ("policy", 6, True)]
    assert turns[1]["logprob"] == -0.5 and data["facts"][0]["turns"] == 1 and data["contents"][0]["origin"]["policy version"] == 4
    assert main(["trajectories", "view", str(tmp_path), "-o", str(tmp_path / "none.html")]) == 64
