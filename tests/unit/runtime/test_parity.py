"""Training goes on only with an engine that says what the trainer says."""

import pytest
import torch
from polymath.runtime.parity import CANARY_TOKENS, canary_of, require_parity
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import ExpertPrecision, Precision

EXACT = Precision(compute="float32", experts=ExpertPrecision(format="float32"))
ROUNDED = Precision(compute="bfloat16", experts=ExpertPrecision(format="bfloat16"))
TRAINER_T = torch.linspace(-8, -0.1, CANARY_TOKENS)


def test_a_gap_of_rounding_is_let_through_and_told() -> None:
    engine_T = TRAINER_T.clone()
    engine_T[3] += 2e-5
    gap = require_parity(engine_T, TRAINER_T, EXACT, 4)
    assert gap.largest == pytest.approx(2e-5, rel=0.1) and gap.mean == pytest.approx(gap.largest / CANARY_TOKENS)
    one_other_expert_T = TRAINER_T.clone()
    one_other_expert_T[3] += 1.25
    require_parity(one_other_expert_T, TRAINER_T, ROUNDED, 4)


@pytest.mark.parametrize(
    ("precision", "change", "bound"),
    [(EXACT, 2e-4, "0.0001"), (ROUNDED, 0.8, "0.25"), (EXACT, float("nan"), "0.0001"), (ROUNDED, float("nan"), "0.25")],
)
def test_more_than_rounding_stops_the_run(precision: Precision, change: float, bound: str) -> None:
    engine_T = TRAINER_T + change
    with pytest.raises(UserError, match=f"policy version 4 .* {bound} is allowed") as caught:
        require_parity(engine_T, TRAINER_T, precision, 4)
    assert caught.value.exit_code == ExitCode.FAILED


def test_the_last_token_alone_gives_a_stale_prefix_away() -> None:
    engine_T = TRAINER_T.clone()
    engine_T[-1] -= 0.5
    with pytest.raises(UserError):
        require_parity(engine_T, TRAINER_T, EXACT, 1)


def test_the_canary_is_the_same_for_a_seed_and_fits_the_context() -> None:
    valid = list(range(5, 300))
    assert canary_of(valid, 4096, 7) == canary_of(valid, 4096, 7) != canary_of(valid, 4096, 8)
    assert len(canary_of(valid, 4096, 7)) == CANARY_TOKENS and len(canary_of(valid, 12, 7)) == 12
    assert set(canary_of(valid, 4096, 7)) <= set(valid)
