"""Promises of distillation's other losses and of teachers that play, in the stage: ledger, batches, weights and gradients."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import DISTILL, TOKENIZER, StubTrainer, distill_stage
from polymath.runtime.jobs import JobContext
from polymath.runtime.losses import distill
from polymath.runtime.stages.distill_loss import score
from polymath.specs.diagnostics import UserError
from polymath.specs.distillation import Distill, DistillLoss, Support
from transformers import Qwen3MoeForCausalLM

TEACHER_OF = {"science": "a", "search": "b"}
FULL, TOP = Support(source="full"), Support(top_k=8)
LOSSES = {
    "reverse": DistillLoss(support=TOP),
    "forward": DistillLoss(support=TOP, divergence="forward_kl"),
    "jsd": DistillLoss(support=TOP, divergence="jsd"),
    "bucket": DistillLoss(support=TOP, tail="bucket"),
    "full": DistillLoss(support=FULL),
    "full forward": DistillLoss(support=FULL, divergence="forward_kl"),
    "policy gradient": DistillLoss(support=FULL, estimator="sampled", importance=(0.999, 1.001)),
    "per sample": DistillLoss(support=TOP, normalize="sample"),
    "per token": DistillLoss(support=TOP, normalize="token"),
}
OFF_POLICY = {
    "off-policy reverse": DistillLoss(support=TOP),
    "off-policy forward": DistillLoss(support=TOP, divergence="forward_kl"),
    "cross-entropy": DistillLoss(support=FULL, estimator="sampled", divergence="forward_kl"),
}
SETTINGS = {name: dataclasses.replace(DISTILL, loss=loss) for name, loss in LOSSES.items()} | {
    name: dataclasses.replace(DISTILL, loss=loss, rollouts="teacher") for name, loss in OFF_POLICY.items()
}
every_loss = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def _valid(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in the whole vocabulary, of which invalid ids are taken away."""
    logprobs = logits.log_softmax(-1)
    logprobs[..., sorted(TOKENIZER.invalid_ids)] = -torch.inf
    return logprobs


def _expected(settings: Distill, sample: Any, student: Any, models: Mapping[str, Path]) -> list[float]:
    """The losses of one sample's written tokens, from plain forward passes and the dense formulas."""
    written_T = torch.tensor(sample.written[1:])
    labels_W = torch.tensor(sample.ids[1:])[written_T]
    teacher = Qwen3MoeForCausalLM.from_pretrained(models[TEACHER_OF[sample.domain]])
    with torch.no_grad():
        own_WV, teacher_WV = (one(torch.tensor([sample.ids])).logits[0, :-1][written_T] for one in (student, teacher))
    loss = settings.loss
    if loss.estimator == "sampled":
        of_label = [one.log_softmax(-1).gather(1, labels_W[:, None]).squeeze(1) for one in (own_WV, teacher_WV)]
        gap_W = of_label[0] - of_label[1]
        return (gap_W if loss.divergence == "reverse_kl" else -gap_W).tolist()
    top = _valid(teacher_WV).topk(loss.support.top_k or len(TOKENIZER.valid_ids), dim=-1)
    found = distill.token_loss(own_WV, top.indices, top.values, divergence=loss.divergence, tail=loss.tail)
    return found.loss_N.tolist()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@every_loss
def test_the_loss_of_a_step_is_its_formula_over_plain_forward_passes(
    settings: Distill, context: JobContext, models: Mapping[str, Path]
) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer, settings)
    value, metrics = trainer.loss(stage, stage.next_batch(1))
    samples = stage._batches.ledger.read(0)
    losses = [_expected(settings, sample, trainer.model, models) for sample in samples]
    by_domain = {
        domain: [one for one, sample in zip(losses, samples, strict=True) if sample.domain == domain] for domain in TEACHER_OF
    }
    expected = {
        "domain": _mean([_mean([_mean(one) for one in own]) for own in by_domain.values()]),
        "sample": _mean([_mean(one) for one in losses]),
        "token": _mean([each for one in losses for each in one]),
    }[settings.loss.normalize]
    assert value == pytest.approx(expected, rel=1e-3, abs=1e-5)
    if settings.loss.normalize != "token":
        for domain, own in by_domain.items():
            assert metrics[f"kl.{domain}"] == pytest.approx(_mean([_mean(one) for one in own]), rel=1e-3, abs=1e-5)
    assert trainer.gradient().abs().max() > 0
    has_support = settings.loss.support.source == "teacher"
    assert ("coverage_mean" in metrics) == ("top_k_overlap.search" in metrics) == has_support
    has_bounds = settings.loss.estimator == "sampled" and settings.rollouts == "student"
    assert ("outside_importance.search" in metrics) == has_bounds
    assert metrics["entropy.search"] > 0 and ("logprob_gap.search" in metrics) == (settings.rollouts == "student")


@every_loss
def test_value_and_gradient_do_not_depend_on_ranks_and_micro_batches(
    settings: Distill, context: JobContext, models: Mapping[str, Path]
) -> None:
    results = []
    for layout in ((1, 1), (2, 2), (4, 1)):
        trainer = StubTrainer(models["student"], *layout)
        stage = distill_stage(context, models, trainer, settings)
        results.append((trainer.loss(stage, stage.next_batch(1)), trainer.gradient()))
    for (value, metrics), gradient in results[1:]:
        assert value == pytest.approx(results[0][0][0], rel=1e-5)
        assert metrics == pytest.approx(results[0][0][1], rel=1e-4)
        assert torch.allclose(gradient, results[0][1], atol=1e-6)


@pytest.mark.parametrize("settings", [SETTINGS[name] for name in OFF_POLICY], ids=OFF_POLICY)
def test_teachers_that_play_write_their_own_domains_and_are_never_stale(
    settings: Distill, context: JobContext, models: Mapping[str, Path]
) -> None:
    trainer = StubTrainer(models["student"])
    stage = distill_stage(context, models, trainer, settings)
    on_policy = distill_stage(context, models, trainer)
    for step in (1, 2):
        stage.next_batch(step)
        assert [one.task.key for one in stage._requests(step)] == [one.task.key for one in on_policy._requests(step)]
        for sample in stage._batches.ledger.read(step - 1):
            assert sample.policy_version == 0 and sample.teacher == TEACHER_OF[sample.domain]
            teacher = Qwen3MoeForCausalLM.from_pretrained(models[sample.teacher])
            with torch.no_grad():
                logprobs_TV = teacher(torch.tensor([sample.ids])).logits[0].log_softmax(-1)
            for position, (logprob, written) in enumerate(zip(sample.logprobs, sample.written, strict=True)):
                if written:
                    assert logprob == pytest.approx(logprobs_TV[position - 1, sample.ids[position]].item(), abs=1e-4)
    assert trainer.syncs == 0 and "engine" not in vars(stage._actors)  # nobody asked the student


def test_a_resumed_run_replays_what_teachers_wrote(context: JobContext, models: Mapping[str, Path]) -> None:
    settings = SETTINGS["cross-entropy"]
    first = distill_stage(context, models, StubTrainer(models["student"]), settings).next_batch(2)
    again = distill_stage(context, models, StubTrainer(models["student"]), settings).next_batch(2)
    assert torch.equal(first.tokens_BL, again.tokens_BL)
    assert all(torch.equal(first.extras[name], again.extras[name]) for name in first.extras)


class _Engine:
    """An engine whose answers are given."""

    def __init__(self, ids: torch.Tensor, logprobs: torch.Tensor) -> None:
        self.ids_TK = ids
        self.logprobs_TK = logprobs

    def score_top_k(self, sequences: Any, k: int) -> list[Any]:
        return [self for _ in sequences]

    def score_tokens(self, sequences: Any) -> list[torch.Tensor]:
        return [self.logprobs_TK[:, 0] for _ in sequences]


class _Trajectory:
    ids, written = (1, 2), (False, True)


def _said(name: str, engine: _Engine) -> None:
    score(SETTINGS[name], "one", engine, [_Trajectory()], torch.arange(3))  # type: ignore[arg-type, list-item]


def test_a_teacher_of_other_tokens_is_refused_where_all_tokens_are_the_support() -> None:
    _said("full", _Engine(torch.tensor([[2, 0, 1]]), torch.tensor([[-1.0, -1.0, -1.0]])))
    with pytest.raises(UserError, match="other tokens than those that the assistant may write"):
        _said("full", _Engine(torch.tensor([[2, 0, 3]]), torch.tensor([[-1.0, -1.0, -1.0]])))


@pytest.mark.parametrize("name", ["full", "policy gradient"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), 0.5])
def test_a_logprob_that_is_none_is_refused(name: str, bad: float) -> None:
    with pytest.raises(UserError, match="gave a log-probability that is not"):
        _said(name, _Engine(torch.tensor([[2, 0, 1]]), torch.tensor([[bad, -1.0, -1.0]])))
