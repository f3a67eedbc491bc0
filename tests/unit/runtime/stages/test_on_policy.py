"""Promises of the on-policy stages, on a real model, real worlds and a real ledger; only the trainer is a stand-in."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import DISTILL, DOMAINS, ROW, TOKENIZER, StubTrainer, distill_stage, make_run
from polymath.runtime.jobs import JobContext
from polymath.runtime.monitors import MONITORS
from polymath.runtime.stages import grpo
from polymath.runtime.stages.grpo import GrpoStage
from polymath.runtime.stages.on_policy import Actors, OnPolicyBatches, PromptDeck
from polymath.runtime.worlds.protocol import Task
from polymath.specs.alarms import Alarms, LowShareAlarm
from polymath.specs.diagnostics import UserError
from polymath.specs.model import GrpoPhase
from transformers import Qwen3MoeForCausalLM

GRPO = GrpoPhase(
    method="grpo", domains=("science", "search"), steps=2, prompts=3, samples=4, updates=2, sequence_tokens=ROW, learning_rate=1e-3
)


def _grpo(context: JobContext, trainer: StubTrainer, reference: bool = False, **changes: Any) -> GrpoStage:
    settings = dataclasses.replace(GRPO, **changes)
    actors = Actors(context, DOMAINS, settings.sampling, ROW)
    folders = {"reference": context.input_folder("model")} if reference else {}
    scorer = actors.open_engines("scorer", folders).get("reference")
    stage = GrpoStage(settings, actors, OnPolicyBatches(context, actors), scorer)
    stage.attach(trainer)  # type: ignore[arg-type]
    return stage


def test_every_trajectory_is_scored_by_its_domains_teacher_alone(context: JobContext, models: Mapping[str, Path]) -> None:
    stage = distill_stage(context, models, StubTrainer(models["student"]))
    stage.next_batch(1)
    samples = stage._batches.ledger.read(0)
    assert [sample.domain for sample in samples] == ["science"] * 3 + ["search"] * 3
    for sample in samples:
        assert sample.teacher == {"science": "a", "search": "b"}[sample.domain]
        teacher = Qwen3MoeForCausalLM.from_pretrained(models[sample.teacher])
        with torch.no_grad():
            logprobs_TV = teacher(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        logprobs_TV[:, sorted(TOKENIZER.invalid_ids)] = -torch.inf
        expected_WK = logprobs_TV[:-1][torch.tensor(sample.written[1:])].topk(8, dim=-1).values
        assert sample.support_logprobs_WK is not None and torch.allclose(sample.support_logprobs_WK, expected_WK, atol=1e-4)
        assert sample.support_ids_WK is not None
        assert TOKENIZER.invalid_ids.isdisjoint(sample.support_ids_WK.flatten().tolist())


def test_the_distillation_loss_is_the_mean_over_samples_then_domains(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer)
    value, metrics = trainer.loss(stage, stage.next_batch(1))
    per_domain: dict[str, list[float]] = {"science": [], "search": []}
    for sample in stage._batches.ledger.read(0):
        with torch.no_grad():
            logits_TV = trainer.model(torch.tensor([sample.ids])).logits[0, :-1][torch.tensor(sample.written[1:])]
        log_p = logits_TV.gather(1, sample.support_ids_WK).log_softmax(-1)
        log_q = sample.support_logprobs_WK.log_softmax(-1)
        per_domain[sample.domain].append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
    means = {domain: sum(values) / len(values) for domain, values in per_domain.items()}
    assert value == pytest.approx(sum(means.values()) / 2, rel=1e-4)
    assert metrics["kl.science"] == pytest.approx(means["science"], rel=1e-4)
    assert 0 < metrics["coverage_p05"] <= metrics["coverage_mean"] <= 1


def test_what_is_watched_is_there_for_every_domain_and_engine_and_trainer_agree(
    context: JobContext, models: Mapping[str, Path]
) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer)
    _, metrics = trainer.loss(stage, stage.next_batch(1))
    samples = stage._batches.ledger.read(0)
    for domain in DOMAINS:
        own = [sample for sample in samples if sample.domain == domain]
        exact = [monitor.metric for monitor in MONITORS if monitor.metric != "outside_importance"]  # which only samples have
        assert {f"{metric}.{domain}" for metric in exact} <= metrics.keys()
        assert metrics[f"trained_tokens.{domain}"] == sum(sample.num_written for sample in own)
        assert metrics[f"logprob_gap.{domain}"] <= metrics[f"logprob_gap_max.{domain}"] < 1e-4
        assert metrics[f"routing_agreement.{domain}"] == metrics[f"routing_equal.{domain}"] == 1.0
        assert 0 <= metrics[f"top_k_overlap.{domain}"] <= 1
    stage.next_batch(2)
    assert not [name for name in stage._metrics if name.startswith("routing")]  # that was measured at the first step


def test_another_models_rollouts_and_experts_show(context: JobContext, models: Mapping[str, Path]) -> None:
    stage = distill_stage(context, models, StubTrainer(models["student"]))
    stage.next_batch(1)
    other = StubTrainer(models["a"])
    stage = distill_stage(context, models, other)  # reads the ledger, and its engine still has the student's weights
    _, metrics = other.loss(stage, stage.next_batch(1))
    for domain in DOMAINS:
        assert metrics[f"logprob_gap.{domain}"] > 0.05
        assert metrics[f"routing_agreement.{domain}"] < 0.9


def test_a_student_that_is_its_own_teacher_shares_its_whole_top_k(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, {**models, "a": models["student"], "b": models["student"]}, trainer)
    _, metrics = trainer.loss(stage, stage.next_batch(1))
    for domain in DOMAINS:
        assert metrics[f"top_k_overlap.{domain}"] > 0.99
        assert metrics[f"kl.{domain}"] < 1e-5


def test_an_alarm_that_skips_keeps_the_step_from_training(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer, alarms=Alarms(coverage_p05=LowShareAlarm(below=1.0, action="skip")))
    _, metrics = trainer.loss(stage, stage.next_batch(1))
    assert metrics["update_skipped"] == 1.0
    assert metrics["trained_tokens.science"] == 0.0


def test_value_and_gradient_do_not_depend_on_ranks_and_micro_batches(context: JobContext, models: Mapping[str, Path]) -> None:
    results = []
    for layout in ((1, 1), (2, 2), (4, 1)):
        trainer = StubTrainer(models["student"], *layout)
        stage = distill_stage(context, models, trainer)
        results.append((trainer.loss(stage, stage.next_batch(1)), trainer.gradient()))
        assert trainer.syncs == (1 if layout == (1, 1) else 0)  # later ones replay the ledger
    for (value, metrics), gradient in results[1:]:
        assert value == pytest.approx(results[0][0][0], rel=1e-5)
        assert metrics == pytest.approx(results[0][0][1], rel=1e-4)
        assert torch.allclose(gradient, results[0][1], atol=1e-6)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, {**models, "a": models["student"], "b": models["student"]}, trainer)
    value, _ = trainer.loss(stage, stage.next_batch(1))
    assert abs(value) < 1e-5
    assert trainer.gradient().abs().max() < 1e-4


def test_the_snapshot_that_acts_is_the_trainers_current_weights(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["a"])  # the engine was started on the student's
    stage = distill_stage(context, models, trainer)
    stage.next_batch(1)
    for sample in stage._batches.ledger.read(0):
        with torch.no_grad():
            logprobs_TV = trainer.model(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        for position, (logprob, written) in enumerate(zip(sample.logprobs, sample.written, strict=True)):
            if written:
                assert logprob == pytest.approx(logprobs_TV[position - 1, sample.ids[position]].item(), abs=1e-4)


def test_a_resumed_run_replays_the_same_batch_without_rolling_out(context: JobContext, models: Mapping[str, Path]) -> None:
    first = distill_stage(context, models, StubTrainer(models["student"])).next_batch(1)
    trainer = StubTrainer(models["student"])
    again = distill_stage(context, models, trainer).next_batch(1)
    assert trainer.syncs == 0
    assert torch.equal(first.tokens_BL, again.tokens_BL) and torch.equal(first.loss_weight_BL, again.loss_weight_BL)
    assert all(torch.equal(first.extras[name], again.extras[name]) for name in first.extras)


def test_the_ledger_holds_the_same_bytes_when_the_run_is_repeated(
    tmp_path: Path, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    for name in ("one", "two"):
        context = make_run(tmp_path / name, models, monkeypatch)
        stage = distill_stage(context, models, StubTrainer(models["student"]))
        stage.next_batch(1)
        manifests.append((stage._batches.ledger.path(0) / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_batch_of_another_policy_is_refused(context: JobContext, models: Mapping[str, Path]) -> None:
    stage = distill_stage(context, models, StubTrainer(models["student"]))
    stage.next_batch(1)
    stage._batches.ledger.path(0).rename(stage._batches.ledger.path(1))
    with pytest.raises(UserError, match="policy version 0, and 1 is training") as caught:
        stage.next_batch(2)
    assert caught.value.exit_code == 4


def test_results_count_what_was_seen_before_a_resume(context: JobContext, models: Mapping[str, Path]) -> None:
    stage = distill_stage(context, models, StubTrainer(models["student"]))
    for step in (1, 2, 3):
        stage.next_batch(step)
    resumed = distill_stage(context, models, StubTrainer(models["student"]))
    resumed.next_batch(3)
    assert resumed.result() == stage.result()
    assert stage.result()["episodes"] == 18
    assert json.loads(json.dumps(stage.result())) == stage.result()


def test_groups_stay_together_and_every_domain_gets_its_share(context: JobContext, models: Mapping[str, Path]) -> None:
    stage = _grpo(context, StubTrainer(models["student"]))
    requests = stage._requests(0)
    assert len(requests) == 12
    groups: dict[int, set[str]] = {}
    for request in requests:
        groups.setdefault(request.group, set()).add(request.task.key)
    assert sorted(groups) == [0, 1, 2] and all(len(keys) == 1 for keys in groups.values())
    assert [requests[group * 4].domain for group in range(3)] == ["science", "science", "search"]


def _reward_by(stage: GrpoStage, reward: Any) -> None:
    """Let the world's verdict be `reward(number)` for every sample of a batch."""
    play = stage._actors.play

    def played(*arguments: Any) -> list[Any]:
        return [dataclasses.replace(one, reward=float(reward(number))) for number, one in enumerate(play(*arguments))]

    stage._actors.play = played  # type: ignore[method-assign]


def test_equal_rewards_give_a_defined_batch_that_moves_nothing(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer)
    _reward_by(stage, lambda number: 1.0)
    batch = stage.next_batch(1)
    value, metrics = trainer.loss(stage, batch)
    assert not batch.loss_weight_BL.any()
    assert value == 0.0 and torch.count_nonzero(trainer.gradient()) == 0
    assert metrics["no_op"] == 1.0 and metrics["groups_dropped"] == metrics["groups"] == 2.0


def test_a_phase_without_anything_to_learn_from_stops_after_a_while_resumed_or_not(
    context: JobContext, models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "MOST_NO_OPS", 3)
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer, steps=9)
    _reward_by(stage, lambda number: number % 2)
    stage.next_batch(1)
    stage.next_batch(2)
    _reward_by(stage, lambda number: 0.5)
    assert not any(stage.next_batch(step).loss_weight_BL.any() for step in (3, 4))
    resumed = _grpo(context, trainer, steps=9)
    _reward_by(resumed, lambda number: 0.5)
    with pytest.raises(UserError, match="for 3 updates every group of rollouts had one reward") as caught:
        resumed.next_batch(5)
    assert caught.value.exit_code == 6


def test_equal_groups_are_kept_at_advantage_zero_where_the_spec_says_so(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer, updates=1, dynamic_sampling=False)
    _reward_by(stage, lambda number: number % 2 if number < 4 else 1.0)  # only group 0 differs within
    batch = stage.next_batch(1)
    written = sum(sample.num_written for sample in stage._batches.ledger.read(0))
    assert int((batch.loss_weight_BL != 0).sum()) == written and batch.loss_weight_BL.sum().item() == pytest.approx(1)
    assert torch.count_nonzero(batch.extras["advantage"]) < written


def test_process_credit_trains_a_group_of_failures_by_the_ledger_s_numbers(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer, updates=1, advantage="process", process_weight=0.25)
    play = stage._actors.play

    def played(*arguments: Any) -> list[Any]:  # everything fails; the steps of group 0 differ
        return [
            dataclasses.replace(one, reward=0.0, outcome=0.0, process=float(number < 4 and number % 2))
            for number, one in enumerate(play(*arguments))
        ]

    stage._actors.play = played  # type: ignore[method-assign]
    batch = stage.next_batch(1)
    first = [sample.num_written for sample in stage._batches.ledger.read(0)[:4]]
    trained = batch.extras["advantage"][batch.loss_weight_BL != 0]
    assert (trained == -0.25).sum() == first[0] + first[2] and (trained == 0.25).sum() == first[1] + first[3] == len(
        trained
    ) - first[0] - first[2]


def test_only_informative_groups_of_the_updates_share_are_trained(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer)
    _reward_by(stage, lambda number: number % 2 if number < 8 else 1.0)  # groups 0 and 1 differ within, group 2 does not
    batches = [stage.next_batch(step) for step in (1, 2)]
    assert trainer.syncs == 1  # two updates, one batch
    samples = stage._batches.ledger.read(0)
    for batch, group in zip(batches, (0, 1), strict=True):  # groups 0 and 2 belong to the first update, 1 to the second
        expected = sum(sample.num_written for sample in samples if sample.group == group)
        assert int((batch.loss_weight_BL != 0).sum()) == expected
        assert batch.loss_weight_BL.sum().item() == pytest.approx(1)
    assert stage.steps == 4


def test_on_policy_ratios_are_one_and_better_samples_become_likelier(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer, updates=1)
    _reward_by(stage, lambda number: number % 4 == 0)
    value, metrics = trainer.loss(stage, stage.next_batch(1))
    assert metrics["ratio_mean"] == pytest.approx(1, abs=1e-4) and metrics["logprob_gap"] < 1e-4
    assert metrics["clip_fraction"] == 0.0
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad
    assert trainer.loss(stage, stage.next_batch(1))[0] < value


def test_the_reference_is_the_start_and_its_kl_is_zero_there(context: JobContext, models: Mapping[str, Path]) -> None:
    trainer = StubTrainer(models["student"])
    stage = _grpo(context, trainer, reference=True, reference_kl=0.1, updates=1)
    _reward_by(stage, lambda number: number % 2)
    batch = stage.next_batch(1)
    assert "reference_logprobs" in batch.extras
    _, metrics = trainer.loss(stage, batch)
    assert metrics["reference_kl"] == pytest.approx(0, abs=1e-5)


def test_episodes_longer_than_a_row_are_refused_at_the_start(context: JobContext) -> None:
    with pytest.raises(UserError, match="48 tokens, a row holds 32") as caught:
        Actors(context, DOMAINS, DISTILL.sampling, 32)
    assert caught.value.exit_code == 3


def test_a_deck_deals_every_task_once_a_pass_and_shuffles_anew() -> None:
    tasks = [Task(world="w", key=str(number), payload={}) for number in range(7)]
    deck = PromptDeck(tasks, seed=1)
    dealt = [task.key for index in range(14) for task in deck.draw(index, 3)]
    passes = [dealt[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == [str(number) for number in range(7)] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert [task.key for task in PromptDeck(tasks, seed=1).draw(5, 3)] == dealt[15:18]
