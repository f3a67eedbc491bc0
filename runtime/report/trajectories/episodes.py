"""Episodes as the page of trajectories shows them: plain data with who wrote what, token counts, verdicts and the graph region.

Sources: files of records or chat rows, a knowledge-action graph, or the ledger of a run's on-policy job.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ....specs.diagnostics import ExitCode, UserError
from ...data.tokenizers import ChatTokenizer
from ...knowledge.branches import attempts
from ...knowledge.conversions import read_any
from ...knowledge.graph import GraphStore
from ...knowledge.records import TrajectoryRecord, written_by_model
from ...ledger import MANIFEST, Ledger, LedgerSample

MOST_CHARACTERS = 20_000  # of one text on the page
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Episode:
    """What the page needs of one episode, as JSON: `facts` for lists and distributions, `content` for the timeline."""

    facts: dict[str, Any]
    content: dict[str, Any]


def episodes_of(source: str, tokenizer: ChatTokenizer, graph: GraphStore | None) -> Iterator[Episode]:
    """The episodes of a file, a graph (`*.sqlite`) or a ledger (a job's `batches` folder).

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        yield from _of_ledger(path, tokenizer)
    elif source.endswith((".sqlite", ".db")):
        with GraphStore.open(source) as store:
            yield from (of_record(record, token_counter(tokenizer), graph or store) for record in attempts(store))
    else:
        yield from (of_record(record, token_counter(tokenizer), graph) for record in read_any(source))


def token_counter(tokenizer: ChatTokenizer) -> Count:
    """Counts the tokens of a text on its own, without the template's marks around it."""
    return lambda text: len(tokenizer.literal_ids(text))


def of_record(record: TrajectoryRecord, count: Count, graph: GraphStore | None) -> Episode:
    """An episode from its record."""
    verdicts: dict[int, list[float]] = {}
    unreadable = {step.message for step in record.steps if not step.readable}
    for step in record.steps:
        if step.verdict is not None:
            verdicts.setdefault(step.message, []).append(step.verdict)
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(record.messages):
        calls = [one["function"] for one in message.get("tool_calls") or ()]
        texts = [str(message.get("reasoning_content") or ""), str(message.get("content") or "")]
        tokens = sum(count(text) for text in [*texts, *(one["name"] + one["arguments"] for one in calls)] if text)
        turns.append(
            {
                "role": message["role"],
                "trained": written_by_model(message),
                "thought": _cut(texts[0]),
                "text": _cut(texts[1]),
                "calls": [{"name": one["name"], "arguments": _cut(one["arguments"])} for one in calls],
                "tokens": tokens,
                "verdicts": verdicts.get(place, []),
                "unreadable": place in unreadable,
                "restart": place in record.restarts,
            }
        )
    refused = record.provenance.get("refused")
    facts = _facts(record.task.domain, record.task.key, turns, record.reward, record.status, record.answer, refused)
    origin = {name: value for name, value in record.provenance.items() if isinstance(value, (str, int, float, bool))}
    content = {
        "id": record.id,
        "instruction": _cut(record.task.instruction),
        "target": record.task.target,
        "answer": _cut(record.answer or "") or None,
        "verifiers": list(record.task.verifiers),
        "origin": origin,
        "turns": turns,
        "region": _region(record, graph),
    }
    return Episode(facts, content)


def _facts(
    domain: str, key: str, turns: Sequence[Mapping[str, Any]], reward: float | None, status: str, answer: str | None, refused: Any
) -> dict[str, Any]:
    calls = Counter(call["name"] for turn in turns for call in turn["calls"])
    return {
        "domain": domain,
        "key": key[:300],
        "turns": sum(turn["trained"] for turn in turns),
        "tokens": sum(turn["tokens"] for turn in turns),
        "trained": sum(turn["tokens"] for turn in turns if turn["trained"]),
        "tools": dict(calls),
        "reward": reward,
        "status": status,
        "outcome": "no verdict" if reward is None else "solved" if reward >= 1 else "failed",
        "refused": str(refused) if refused else ("" if answer is not None or reward else status),
    }


def _region(record: TrajectoryRecord, graph: GraphStore | None) -> dict[str, Any]:
    """What of the graph the episode touched: tools in the order they were called, evidence shown and required, verifiers."""
    shown = [node for step in record.steps for node in step.evidence]
    evidence = list(dict.fromkeys([*record.task.evidence, *shown]))
    named = {one: node for one in evidence if graph is not None and (node := graph.node(one)) is not None}
    order = [one["function"]["name"] for message in record.messages for one in message.get("tool_calls") or ()]
    reads: Counter[tuple[str, str]] = Counter()
    for step in record.steps:
        calls = record.messages[step.message].get("tool_calls") or ()
        if step.call is not None and step.call < len(calls):
            reads.update((calls[step.call]["function"]["name"], node) for node in step.evidence)
    return {
        "tools": list(dict.fromkeys(order)),
        "transitions": [[one, other, times] for (one, other), times in Counter(pairwise(order)).items()],
        "evidence": [
            {
                "id": one,
                "name": named[one].name or named[one].body[:80] if one in named else one[:12],
                "kind": named[one].kind if one in named else "evidence",
                "required": one in record.task.evidence,
                "consulted": one in shown,
            }
            for one in evidence[:40]
        ],
        "reads": [[tool, node, times] for (tool, node), times in reads.items()],
    }


def _of_ledger(folder: Path, tokenizer: ChatTokenizer) -> Iterator[Episode]:
    batches = sorted(int(one.parent.name) for one in folder.glob(f"*/{MANIFEST}") if one.parent.name.isdigit())
    if not batches:
        raise UserError(
            f"{folder} is a folder without rollout batches" if folder.is_dir() else f"there is no folder {folder}",
            exit_code=ExitCode.USAGE,
            fix="name a file of trajectories, or a job's folder of batches, such as runs/my-run/jobs/distill-.../batches",
        )
    ledger = Ledger(folder)
    for index in batches:
        yield from (of_sample(index, sample, tokenizer) for sample in ledger.read(index))


def of_sample(index: int, sample: LedgerSample, tokenizer: ChatTokenizer) -> Episode:
    """An episode from the ledger: its tokens in runs that the policy wrote, and runs that it read."""
    turns: list[dict[str, Any]] = []
    start = 0
    for place in range(1, len(sample.ids) + 1):
        if place < len(sample.ids) and sample.written[place] == sample.written[start]:
            continue
        written = sample.written[start]
        logprobs = sample.logprobs[start:place]
        turns.append(
            {
                "role": "policy" if written else "context",
                "trained": written,
                "thought": "",
                "text": _cut(tokenizer.decode(list(sample.ids[start:place]))),
                "calls": [],
                "tokens": place - start,
                "verdicts": [],
                "unreadable": False,
                "restart": False,
                **({"logprob": round(sum(logprobs) / len(logprobs), 4)} if written else {}),
            }
        )
        start = place
    status = sample.status.lower()
    facts = _facts(sample.domain, sample.task_key, turns, sample.outcome, status, status, None) | {"turns": sample.turns}
    origin = {
        "batch": index,
        "group": sample.group,
        "policy version": sample.policy_version,
        "reward": round(sample.reward, 4),
        "process": round(sample.process, 4),
        **({"teacher": sample.teacher} if sample.teacher else {}),
    }
    region: dict[str, Any] = {"tools": [], "transitions": [], "evidence": [], "reads": []}
    names: dict[str, Any] = {"instruction": sample.task_key, "target": None, "answer": None, "verifiers": []}
    return Episode(
        facts, {"id": f"batch {index}, sample {sample.number}", **names, "origin": origin, "turns": turns, "region": region}
    )


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}\n[{len(text) - MOST_CHARACTERS} more characters are not on this page]"
