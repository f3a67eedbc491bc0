"""What distillation watches beside its loss, at the sizes of the small recipe: with coverage alone beside it, on one thread.

`rollout.py` says which share of a real distillation step it is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from polymath.runtime.losses.subset import support_logits
from polymath.runtime.losses.watched import watch

pytest.importorskip("pytest_benchmark")

TOKENS, VOCABULARY, WIDTH, K = 1024, 442, 64, 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("what", ["all of it", "coverage alone"])
def test_watching(benchmark: Any, what: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_MH = torch.randn(TOKENS, WIDTH, generator=generator)
    head_VH = torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.3
    support_MK = (hidden_MH @ head_VH.T + torch.randn(TOKENS, VOCABULARY, generator=generator)).topk(K).indices
    next_M = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    ways: dict[str, Callable[[], Any]] = {
        "all of it": lambda: watch(hidden_MH, head_VH, support_MK, next_M, range(20)),
        "coverage alone": lambda: (
            support_logits(hidden_MH, head_VH, support_MK).logsumexp(-1) - (hidden_MH @ head_VH.T).logsumexp(-1)
        ).exp(),
    }
    benchmark.group = f"watching {TOKENS:,} tokens"
    assert benchmark.pedantic(ways[what], rounds=20, warmup_rounds=2) is not None
