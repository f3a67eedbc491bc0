"""What distillation takes from a teacher, and the sample of tokens at which it measures coverage."""

import pytest
import torch
from polymath.runtime.stages.distill import watched_tokens
from polymath.runtime.stages.distill_loss import require_sound_support
from polymath.specs.diagnostics import ExitCode, UserError

IDS_TK = torch.tensor([[4, 2, 9], [1, 0, 7]])
LOGPROBS_TK = torch.tensor([[-0.1, -2.5, -4.0], [0.0, -20.0, -30.0]])


def test_a_sound_support_is_taken() -> None:
    require_sound_support("one", IDS_TK, LOGPROBS_TK)
    require_sound_support("one", IDS_TK[:0], LOGPROBS_TK[:0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 0.5])
def test_a_logprob_that_is_none_is_refused(bad: float) -> None:
    logprobs_TK = LOGPROBS_TK.clone()
    logprobs_TK[1, 2] = bad
    with pytest.raises(UserError, match="teacher `one` gave a log-probability that is not") as caught:
        require_sound_support("one", IDS_TK, logprobs_TK)
    assert caught.value.exit_code == ExitCode.FAILED


def test_a_support_that_names_a_token_twice_is_refused() -> None:
    with pytest.raises(UserError, match="teacher `one` named one token twice"):
        require_sound_support("one", torch.tensor([[4, 2, 4], [1, 0, 7]]), LOGPROBS_TK)


def test_all_tokens_are_watched_where_there_are_few() -> None:
    assert [one.tolist() for one in watched_tokens([2, 0, 1], 3, seed=1)] == [[True, True], [], [True]]


def test_as_many_tokens_are_watched_as_asked_for_and_the_same_ones_again() -> None:
    written = [5, 0, 40, 3]
    watched = watched_tokens(written, 10, seed=1)
    assert [len(one) for one in watched] == written
    assert int(torch.cat(watched).sum()) == 10
    assert torch.equal(torch.cat(watched), torch.cat(watched_tokens(written, 10, seed=1)))
    assert not torch.equal(torch.cat(watched), torch.cat(watched_tokens(written, 10, seed=2)))


def test_a_batch_without_a_written_token_has_none_to_watch() -> None:
    assert [len(one) for one in watched_tokens([0, 0], 10, seed=1)] == [0, 0]
