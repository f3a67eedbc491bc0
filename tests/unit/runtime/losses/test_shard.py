"""Every loss is the same on a vocabulary that is split over ranks: values, gradients, what is watched, and what is never built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from polymath.runtime.losses import grpo, sft, subset, vocabulary
from polymath.runtime.losses.shard import WHOLE, VocabularyShard, WholeVocabulary
from polymath.runtime.losses.watched import watch
from ranks import on_ranks
from torch import Tensor

TOKENS, WIDTH, VOCABULARY, K = 37, 12, 53, 6  # an odd vocabulary: the last rank has fewer rows
VALID = torch.tensor([one for one in range(VOCABULARY) if one % 9])
INVALID = [one for one in range(VOCABULARY) if one % 9 == 0]
Inputs = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Inputs, WholeVocabulary], Tensor]


def _inputs(tokens: int = TOKENS, dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, WIDTH, generator=generator).div(2)
    head_VH = torch.randn(vocabulary, WIDTH, generator=generator)
    teacher_NV = torch.randn(tokens, vocabulary, generator=generator).mul(2).log_softmax(-1)
    top = teacher_NV[:, VALID].topk(K, dim=-1)
    written_N = torch.arange(tokens) * 7 % VOCABULARY
    own_N = (hidden_NH @ head_VH.T).log_softmax(-1).gather(1, written_N[:, None]).squeeze(1)
    return {
        "hidden": hidden_NH.to(dtype),
        "head": head_VH.to(dtype),
        "ids": VALID[top.indices],
        "logprobs": top.values,
        "full": teacher_NV[:, VALID],
        "written": written_N,
        "teacher": teacher_NV.gather(1, written_N[:, None]).squeeze(1),
        "rollout": own_N + torch.randn(tokens, generator=generator),
        "advantage": torch.randn(tokens, generator=generator),
        "weight": torch.rand(tokens, generator=generator),
    }


def _on_support(hidden: Tensor, head: Tensor, i: Inputs, shard: WholeVocabulary, **chosen: Any) -> Tensor:
    return subset.token_loss(hidden, head, i["ids"], i["logprobs"], shard=shard, **chosen)


def _grpo(hidden: Tensor, head: Tensor, i: Inputs, shard: WholeVocabulary) -> Tensor:
    terms = grpo.token_loss(
        hidden @ head.T, i["written"], i["rollout"], i["advantage"], clip=(0.2, 0.28), entropy=0.1, shard=shard,
        reference_logprobs_N=i["teacher"], reference_kl=0.1,
    )  # fmt: skip
    return terms.loss_N + terms.entropy_N + terms.ratio_N


LOSSES: dict[str, Loss] = {
    **{
        f"support, {name}": lambda h, w, i, s, name=name: _on_support(h, w, i, s, divergence=name)
        for name in ("reverse_kl", "forward_kl", "jsd")
    },
    **{
        f"bucket, {name}": lambda h, w, i, s, name=name: vocabulary.bucket_loss(h, w, i["ids"], i["logprobs"], name, s)
        for name in ("reverse_kl", "forward_kl", "jsd")
    },
    **{
        f"full, {name}": lambda h, w, i, s, name=name: vocabulary.full_loss(h, w, VALID, i["full"], name, s)
        for name in ("reverse_kl", "forward_kl", "jsd")
    },
    "support of one token": lambda h, w, i, s: subset.token_loss(h, w, i["ids"][:, :1], i["logprobs"][:, :1], shard=s),
    "support on one rank": lambda h, w, i, s: subset.token_loss(h, w, i["ids"] % 26, i["logprobs"], shard=s),
    "policy gradient": lambda h, w, i, s: vocabulary.policy_gradient(h, w, i["written"], i["teacher"], i["rollout"], (0.5, 2.0), s),
    "cross-entropy at what the teacher wrote": lambda h, w, i, s: vocabulary.cross_entropy(h, w, i["written"], i["teacher"], s),
    "SFT": lambda h, w, i, s: sft.token_loss(h @ w.T, i["written"], s),
    "GRPO": _grpo,
}


def _value_and_gradients(loss: Loss, inputs: Inputs, rows: slice, shard: WholeVocabulary) -> list[Tensor]:
    hidden_NH, head_vH = inputs["hidden"].clone().requires_grad_(), inputs["head"][rows].clone().requires_grad_()
    loss_N = loss(hidden_NH, head_vH, inputs, shard)
    return [loss_N.detach(), *torch.autograd.grad((loss_N * inputs["weight"]).sum(), (hidden_NH, head_vH))]


def _compare(name: str, inputs: Inputs, rows: slice, shard: VocabularyShard, tolerance: float) -> None:
    found, gradient_NH, gradient_vH = _value_and_gradients(LOSSES[name], inputs, rows, shard)
    expected, expected_NH, expected_VH = _value_and_gradients(LOSSES[name], inputs, slice(None), WHOLE)
    whole_NH = gradient_NH.float()
    dist.all_reduce(whole_NH)  # each rank has its part of it
    for what, one, reference in (
        ("loss", found, expected),
        ("gradient of the hidden states", whole_NH, expected_NH.float()),
        ("gradient of the rows here", gradient_vH, expected_VH[rows]),
    ):
        torch.testing.assert_close(
            one, reference, atol=tolerance, rtol=tolerance, msg=lambda text, what=what: f"{name}: {what}: {text}"
        )


def _compare_everything(shard: VocabularyShard, rows: slice) -> None:
    for chunk_bytes in (1, 5 * 27 * 4, subset.CHUNK_BYTES):
        subset.CHUNK_BYTES = vocabulary.CHUNK_BYTES = chunk_bytes
        for name in LOSSES:
            _compare(name, _inputs(), rows, shard, 2e-5)
    for name in LOSSES:
        _compare(name, _inputs(tokens=0), rows, shard, 0.0)
    for name in ("support, reverse_kl", "bucket, jsd", "full, forward_kl", "policy gradient"):
        _compare(name, _inputs(dtype=torch.bfloat16), rows, shard, 2e-2)


def _compare_watched(shard: VocabularyShard, rows: slice) -> None:
    for tokens in (TOKENS, 0):
        inputs = _inputs(tokens)
        for ids in (inputs["ids"], inputs["ids"][:, :0]):
            args = (ids, inputs["written"], INVALID)
            found = watch(inputs["hidden"], inputs["head"][rows], *args, shard)
            expected = watch(inputs["hidden"], inputs["head"], *args)
            for name in ("coverage_M", "overlap_M", "entropy_M", "logprob_M"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


def _read_poisoned_rows(shard: VocabularyShard, rows: slice) -> None:
    """A row in no support, here or elsewhere, is neither read nor moved."""
    clean = _inputs(tokens=3)
    outside_V = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, clean["ids"].reshape(-1), False)
    poisoned = {**clean, "head": clean["head"].masked_fill(outside_V[:, None], torch.nan)}
    found, expected = (_value_and_gradients(_on_support, one, rows, shard) for one in (poisoned, clean))
    assert outside_V[rows].any() and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not found[2][outside_V[rows]].any()


def _watch_memory(shard: VocabularyShard, rows: slice) -> None:
    """Nothing as large as the logits of all tokens, or of this shard, is built for the loss on a support."""
    shard = VocabularyShard(group=shard.group, num_ids=10 * VOCABULARY)
    rows = slice(shard.first, shard.first + shard.rows)
    inputs = _inputs(tokens=4000, vocabulary=10 * VOCABULARY)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _value_and_gradients(_on_support, inputs, rows, shard)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 4000 * K * 8 * 2 < 4000 * shard.rows * 4 / 10


def _check(_: int, check: Callable[[VocabularyShard, slice], None]) -> None:
    shard = VocabularyShard(group=dist.group.WORLD, num_ids=VOCABULARY)  # type: ignore[arg-type]
    check(shard, slice(shard.first, shard.first + shard.rows))


@pytest.mark.multi_rank
def test_every_loss_and_gradient_is_that_of_one_rank_whatever_the_chunks(tmp_path: Path) -> None:
    on_ranks(_check, tmp_path, _compare_everything)


@pytest.mark.multi_rank
def test_what_is_watched_is_that_of_one_rank(tmp_path: Path) -> None:
    on_ranks(_check, tmp_path, _compare_watched)


@pytest.mark.multi_rank
def test_no_row_outside_the_supports_is_read_or_moved_on_any_rank(tmp_path: Path) -> None:
    on_ranks(_check, tmp_path, _read_poisoned_rows)


@pytest.mark.multi_rank
def test_no_rank_builds_the_logits_of_its_shard_for_the_loss_on_a_support(tmp_path: Path) -> None:
    on_ranks(_check, tmp_path, _watch_memory)


def test_the_shards_of_any_number_of_ranks_are_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks in (1, 2, 3, 4):
        found: list[int] = []
        for rank in range(ranks):
            monkeypatch.setattr(dist, "get_rank", lambda _group, rank=rank: rank)
            monkeypatch.setattr(dist, "get_world_size", lambda _group, ranks=ranks: ranks)
            shard = VocabularyShard(group=None, num_ids=VOCABULARY)  # type: ignore[arg-type]
            found += range(shard.first, shard.first + shard.rows)
        assert found == list(range(VOCABULARY))
