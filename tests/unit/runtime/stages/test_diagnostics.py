"""Each number against a case by hand; each alarm fires where it should and nowhere else, does what it says, and leaves a line."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from polymath.runtime.data.batch import PackedBatch
from polymath.runtime.data.packing import pack
from polymath.runtime.launch.events import read_events
from polymath.runtime.ledger import LedgerSample
from polymath.runtime.losses.shard import WHOLE
from polymath.runtime.monitors import MONITOR_OF_ALARM, UPDATE_SKIPPED
from polymath.runtime.stages.diagnostics import Alarms, WatchedTokens, coverage_metrics, domain_metrics, routing_metrics
from polymath.runtime.stages.on_policy import rollout_metrics, totals
from polymath.specs import alarms as spec
from polymath.specs.alarms import HighNatsAlarm, HighShareAlarm, InitialKlAlarm, LowNatsAlarm, LowShareAlarm
from polymath.specs.diagnostics import UserError
from torch import Tensor

DOMAINS = ("science", "search", "tools")


def sample(domain: str, written: int, status: str = "COMPLETED", reward: float = 0.0, ids: tuple[int, ...] = ()) -> LedgerSample:
    return LedgerSample(
        number=0, ids=ids or tuple(range(3 + written)), written=(False,) * 3 + (True,) * written, logprobs=(0.0,) * (3 + written),
        domain=domain, task_key="t", group=0, status=status, reward=reward, outcome=reward, turns=1, interruptions=0, process=0.0,
        dropped=0, policy_version=0,
    )  # type: ignore[arg-type]  # fmt: skip


def tokens(domains: list[int], watched: list[bool], support: list[list[int]], labels: list[int], logprobs: list[float]) -> Any:
    extras = {
        "domain": torch.tensor(domains, dtype=torch.int64),
        "watched": torch.tensor(watched, dtype=torch.bool),
        "support_ids": torch.tensor(support, dtype=torch.int64).view(len(domains), 2),
        "rollout_logprobs": torch.tensor(logprobs),
    }
    return types.SimpleNamespace(labels_N=torch.tensor(labels, dtype=torch.int64), extras=extras)


HEAD_VH = torch.tensor([4.0, 3.0, 2.0, 1.0]).log().unsqueeze(1)  # at hidden state 1: probabilities 0.4, 0.3, 0.2, 0.1


def test_watched_tokens_of_each_domain_by_hand() -> None:
    watched = WatchedTokens(DOMAINS, frozenset())
    given = tokens(
        domains=[0, 0, 2, 2],
        watched=[True, True, True, False],
        support=[[0, 1], [0, 2], [2, 3], [0, 1]],
        labels=[0, 3, 1, 2],
        logprobs=[-0.9163, -2.8026, -1.2040, 50.0],  # log 0.4, log 0.1 - 0.5, log 0.3
    )
    metrics = watched.metrics(watched.sums(torch.ones(4, 1), HEAD_VH, given, WHOLE))
    assert metrics["coverage_mean.science"] == pytest.approx((0.7 + 0.6) / 2, abs=1e-4)
    assert metrics["coverage_mean.tools"] == pytest.approx(0.3, abs=1e-4)
    assert metrics["coverage_mean"] == pytest.approx((0.7 + 0.6 + 0.3) / 3, abs=1e-4)
    assert metrics["coverage_p05.science"] == pytest.approx(0.6, abs=1e-3)
    assert metrics["coverage_p05"] == pytest.approx(0.3, abs=1e-3)
    assert metrics["top_k_overlap.science"] == pytest.approx(0.75)
    assert metrics["top_k_overlap.tools"] == 0.0
    assert metrics["entropy.tools"] == pytest.approx(1.27985, abs=1e-4)
    assert metrics["logprob_gap.science"] == pytest.approx(0.25, abs=1e-3)
    assert metrics["logprob_gap_max.science"] == pytest.approx(0.5, abs=1e-3)
    assert metrics["logprob_gap_max.tools"] < 1e-3  # the token that is not watched does not count
    assert not [name for name in metrics if name.endswith(".search")]  # nothing of it was watched


def test_tokens_outside_the_importance_bounds_by_hand() -> None:
    given = tokens(
        domains=[0, 0, 2, 2],
        watched=[True, True, True, False],
        support=[[0, 1]] * 4,
        labels=[0, 3, 1, 2],
        logprobs=[-0.9163, -2.8026, -1.2040, 50.0],  # ratios 1, exp(0.5) = 1.65 and 1; what is not watched does not count
    )
    for importance, science in (((0.5, 2.0), 0.0), ((0.5, 1.6), 0.5), ((1.1, 2.0), 0.5)):
        watched = WatchedTokens(DOMAINS, frozenset(), importance)
        metrics = watched.metrics(watched.sums(torch.ones(4, 1), HEAD_VH, given, WHOLE))
        assert metrics["outside_importance.science"] == pytest.approx(science)
        assert metrics["outside_importance.tools"] == (1.0 if importance[0] > 1 else 0.0)
        assert "outside_importance.search" not in metrics
    assert "outside_importance" not in WatchedTokens(DOMAINS, frozenset()).sums(torch.ones(4, 1), HEAD_VH, given, WHOLE)


def test_sums_of_micro_batches_and_ranks_are_the_sums_of_the_batch() -> None:
    watched = WatchedTokens(DOMAINS, frozenset())
    columns = {
        "domains": [0, 1, 0], "watched": [True] * 3, "support": [[0, 1], [1, 2], [2, 3]], "labels": [0, 1, 2],
        "logprobs": [-1.0, -2.0, -3.0],
    }  # fmt: skip
    whole = watched.sums(torch.ones(3, 1), HEAD_VH, tokens(**columns), WHOLE)
    parts = [
        watched.sums(torch.ones(1, 1), HEAD_VH, tokens(**{name: one[n : n + 1] for name, one in columns.items()}), WHOLE)
        for n in range(3)
    ]
    empty = watched.sums(torch.ones(0, 1), HEAD_VH, tokens([], [], [], [], []), WHOLE)
    for name, expected in whole.items():
        pieces = torch.stack([one[name] for one in (*parts, empty)])
        torch.testing.assert_close(pieces.amax(0) if name.endswith("_max") else pieces.sum(0), expected)


def test_a_batch_without_a_watched_token_and_one_with_nan_have_sums_all_the_same() -> None:
    watched = WatchedTokens(DOMAINS, frozenset())
    empty = watched.sums(torch.ones(0, 1), HEAD_VH, tokens([], [], [], [], []), WHOLE)
    assert watched.metrics(empty) == {"coverage_mean": 1.0, "coverage_p05": 1.0}
    bad = watched.sums(torch.full((1, 1), torch.nan), HEAD_VH, tokens([0], [True], [[0, 1]], [0], [-1.0]), WHOLE)
    assert bad["coverage_histogram"].sum() == 1  # the trainer stops at the loss; nothing breaks before


def test_coverage_quantiles_come_from_the_histogram() -> None:
    coverage_N = torch.cat([torch.full((5,), 0.3), torch.full((95,), 0.9)])
    histogram = torch.bincount((coverage_N * 2000).long(), minlength=2000)
    metrics = coverage_metrics(histogram, coverage_N.sum())
    assert metrics["coverage_mean"] == pytest.approx(0.87, abs=1e-4)
    assert metrics["coverage_p05"] == pytest.approx(0.3, abs=1e-3)


def test_rollouts_of_each_domain_by_hand() -> None:
    samples = [
        sample("search", 4, reward=1.0), sample("search", 8, "TRUNCATED"), sample("search", 0, "TRUNCATED"), sample("tools", 2)
    ]  # fmt: skip
    metrics = domain_metrics(samples)
    assert metrics["reward_mean.search"] == pytest.approx(1 / 3)
    assert metrics["truncated.search"] == pytest.approx(2 / 3) and metrics["truncated.tools"] == 0.0
    assert (metrics["written_mean.search"], metrics["written_max.search"]) == (4.0, 8.0)
    assert (metrics["trained_tokens.search"], metrics["trained_samples.search"]) == (12.0, 2.0)  # one wrote nothing
    assert not [name for name in metrics if name.endswith(".science")]


def test_a_forced_answer_is_counted_as_such_per_domain_in_a_step_and_in_a_job() -> None:
    samples = [sample("search", 4, "FORCED", reward=1.0), sample("search", 4), sample("tools", 2, "TRUNCATED")]
    metrics = domain_metrics(samples)
    assert (metrics["forced.search"], metrics["forced.tools"], metrics["truncated.search"]) == (0.5, 0.0, 0.0)
    step = rollout_metrics(samples)
    assert step["forced"] == step["completed"] == step["truncated"] == pytest.approx(1 / 3)
    assert (totals(samples)["forced"], totals(samples)["truncated"]) == (1, 1)


class Fake:
    """Batches, an engine and a trainer whose experts the test chooses by token id: one layer, two experts a token."""

    def __init__(self, engine: dict[int, list[int]], trainer: dict[int, list[int]]) -> None:
        self.actors = types.SimpleNamespace(engine=types.SimpleNamespace(expert_choices=self._of_engine))
        self.trainer = types.SimpleNamespace(expert_choices=self._of_trainer, reduced=lambda sums: sums)
        self._engine, self._trainer = engine, trainer

    def _of_engine(self, sequences: list[tuple[int, ...]]) -> list[Tensor]:
        return [torch.tensor([[self._engine[one]] for one in ids]) for ids in sequences]

    def _of_trainer(self, batch: PackedBatch) -> list[tuple[PackedBatch, Tensor]]:
        return [(batch, torch.tensor([[[self._trainer.get(one, [0, 1])] for one in row] for row in batch.tokens_BL.tolist()]))]

    def pack(self, documents: Any, sequence_tokens: int) -> PackedBatch:
        return pack(documents, sequence_tokens, rows=2)


def test_routing_agreement_by_hand() -> None:
    """Four tokens are routed, the last predicts nothing: equal in another order, one of two alike, none alike, equal."""
    engine = {10: [0, 1], 11: [0, 1], 12: [0, 1], 13: [2, 3], 14: [0, 1]}
    trainer = {10: [1, 0], 11: [1, 2], 12: [2, 3], 13: [3, 2], 14: [5, 6]}
    batches: Any = Fake(engine, trainer)
    found = routing_metrics([sample("search", 2, ids=(10, 11, 12, 13, 14))], DOMAINS, batches, 8)
    assert found == {"routing_agreement.search": 2.5 / 4, "routing_equal.search": 2 / 4}


ALARMS = {
    "initial_kl": (InitialKlAlarm(above=0.5), 0.6, 0.4),
    "coverage_p05": (LowShareAlarm(below=0.5), 0.4, 0.6),
    "top_k_overlap": (LowShareAlarm(below=0.5), 0.4, 0.6),
    "entropy": (LowNatsAlarm(below=0.1), 0.05, 0.2),
    "logprob_gap": (HighNatsAlarm(above=0.02), 0.03, 0.01),
    "routing_agreement": (LowShareAlarm(below=0.9), 0.8, 0.95),
    "truncated": (HighShareAlarm(above=0.3), 0.4, 0.2),
}


def make_alarms(run_dir: Path, rank: int = 0, **settings: Any) -> Alarms:
    job = types.SimpleNamespace(id="distill", folder="distill-0")
    context: Any = types.SimpleNamespace(run_dir=run_dir, job=job, is_first_rank=rank == 0)
    return Alarms(context, spec.Alarms(**settings), DOMAINS)


def alarm_events(run_dir: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir) if event["event"] == "alarm"]


def test_every_alarm_of_the_language_is_tested_and_watches_something() -> None:
    names = {field.name for field in dataclasses.fields(spec.Alarms)}
    assert names == ALARMS.keys() == MONITOR_OF_ALARM.keys()


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_fires_past_its_threshold_in_its_domain_and_leaves_a_line(tmp_path: Path, name: str) -> None:
    alarm, bad, good = ALARMS[name]
    metric = MONITOR_OF_ALARM[name].metric
    alarms = make_alarms(tmp_path, **{name: alarm})
    assert alarms.judge(1, {f"{metric}.search": bad, f"{metric}.tools": good}) == {}
    (event,) = alarm_events(tmp_path)
    side, threshold = ("below", alarm.below) if hasattr(alarm, "below") else ("above", alarm.above)
    expected = {
        "job": "distill", "step": 1, "alarm": name, "domain": "search", "value": bad, "side": side, "threshold": threshold,
        "action": "warn",
    }  # fmt: skip
    assert {key: event[key] for key in expected} == expected
    assert alarms.judge(1, {f"{metric}.search": good}) == {} and len(alarm_events(tmp_path)) == 1


def test_the_initial_kl_is_looked_at_once(tmp_path: Path) -> None:
    alarms = make_alarms(tmp_path, initial_kl=InitialKlAlarm(above=0.5))
    alarms.judge(2, {"kl.search": 9.0})
    assert not alarm_events(tmp_path)


def test_skip_keeps_the_step_from_training_and_warn_does_not(tmp_path: Path) -> None:
    metrics = {"truncated.search": 0.9, "trained_tokens.search": 40.0, "trained_tokens.tools": 20.0}
    for action, changes in (
        ("warn", {}),
        ("skip", {UPDATE_SKIPPED: 1.0, "trained_tokens.search": 0.0, "trained_tokens.tools": 0.0}),
    ):
        assert make_alarms(tmp_path, truncated=HighShareAlarm(above=0.3, action=action)).judge(4, metrics) == changes
    assert [event["action"] for event in alarm_events(tmp_path)] == ["warn", "skip"]


def test_stop_says_what_it_saw_and_what_to_do_after_every_alarm_left_its_line(tmp_path: Path) -> None:
    alarms = make_alarms(tmp_path, coverage_p05=LowShareAlarm(below=0.5, action="stop"), truncated=HighShareAlarm(above=0.3))
    with pytest.raises(UserError, match=r"step 7, domain `search`: alarm `coverage_p05`, 0.4 is below 0.5") as caught:
        alarms.judge(7, {"coverage_p05.search": 0.4, "truncated.tools": 0.5})
    assert caught.value.exit_code == 6 and "support.top_k" in str(caught.value.fix)
    assert {event["alarm"] for event in alarm_events(tmp_path)} == {"coverage_p05", "truncated"}


def test_the_log_is_told_when_a_number_turns_bad_and_the_events_at_every_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alarms = make_alarms(tmp_path, coverage_p05=LowShareAlarm(below=0.5))
    for step, value in enumerate((0.9, 0.4, 0.3, 0.9, 0.2), start=1):
        alarms.judge(step, {"coverage_p05.search": value})
    assert [event["step"] for event in alarm_events(tmp_path)] == [2, 3, 5]
    assert caplog.text.count("alarm `coverage_p05`") == 2


def test_only_the_first_rank_writes_and_every_rank_stops(tmp_path: Path) -> None:
    alarms = make_alarms(tmp_path, rank=1, truncated=HighShareAlarm(above=0.3, action="stop"))
    with pytest.raises(UserError):
        alarms.judge(1, {"truncated.search": 0.9})
    assert not alarm_events(tmp_path)
