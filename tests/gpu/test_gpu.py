"""Every check of checks.py as a test; skipped, with its reason, where the machine lacks something."""

from collections.abc import Callable

import pytest
import torch
from checks import CHECKS, Lacking


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_on_the_gpu(check: Callable[[str], str]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    try:
        check("cuda")
    except Lacking as missing:
        pytest.skip(f"lacks {missing}")
