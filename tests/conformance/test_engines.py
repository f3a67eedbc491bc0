"""What every engine promises, whatever it is and however it is reached. The vLLM engines are tried by `make test-vllm`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from polymath.runtime.engines.protocol import Generation, SamplingSettings
from polymath.specs.diagnostics import UserError

from .engines import CONTEXT_TOKENS, Models, Subject, lacks, make_models, open_subject

PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
SEQUENCES = [[(7 * place + first) % 300 for place in range(length)] for first, length in ((5, CONTEXT_TOKENS), (9, 2), (11, 41))]
PROMPTS = [sequence[:length] for sequence, length in zip(SEQUENCES, (70, 1, 33), strict=True)]
CLOSE = 1e-5


@pytest.fixture(scope="module", params=["embedded-tied", "embedded", "process-tied", "process", "http-tied"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Subject, Models]]:
    """One engine for all tests of it, on a model whose output head shares the embedding's weight or does not."""
    kind, _, head = request.param.partition("-")
    if reason := lacks(kind):
        pytest.skip(reason)
    root = tmp_path_factory.mktemp(kind)
    models = make_models(root, tied=head == "tied")
    with ExitStack() as cleanup:
        yield open_subject(kind, models, root, cleanup), models


@pytest.fixture
def models(opened: tuple[Subject, Models]) -> Models:
    return opened[1]


@pytest.fixture
def subject(opened: tuple[Subject, Models]) -> Subject:
    """The engine, with the first model's weights."""
    if opened[0].engine.policy_version != 0:
        opened[0].load("first", policy_version=0)
    return opened[0]


def _stop_of(models: Models) -> int:
    """A token that the first model often writes."""
    return int(models.logprobs("first", PROMPTS[0])[-1].argmax())


def _generate(subject: Subject, models: Models, sampling: SamplingSettings = PLAIN, seed: int = 3) -> list[Generation]:
    return subject.engine.generate(PROMPTS, limits=[12, 20, 1], sampling=sampling, stop_ids=[_stop_of(models)], seed=seed)


def _first_gap(subject: Subject, models: Models, name: str) -> float:
    """Largest difference of the token scores from a plain forward pass."""
    gaps = []
    for sequence, scores_T in zip(SEQUENCES, subject.engine.score_tokens(SEQUENCES), strict=True):
        expected_T = models.logprobs(name, sequence)[:-1].gather(1, torch.tensor(sequence[1:])[:, None]).squeeze(1)
        assert scores_T.dtype == torch.float32 and scores_T.shape == expected_T.shape
        gaps.append((scores_T - expected_T).abs().max().item())
    return max(gaps)


def test_token_scores_are_those_of_a_plain_forward(subject: Subject, models: Models) -> None:
    assert _first_gap(subject, models, "first") < CLOSE


def test_top_k_scores_are_the_most_likely_tokens_that_may_be_written(subject: Subject, models: Models) -> None:
    invalid = sorted(models.tokenizer.invalid_ids)
    for sequence, top in zip(SEQUENCES, subject.engine.score_top_k(SEQUENCES, 9), strict=True):
        logprobs_TV = models.logprobs("first", sequence)[:-1]
        logprobs_TV[:, invalid] = -torch.inf
        expected = logprobs_TV.topk(9, dim=-1)
        assert top.ids_TK.dtype == torch.int64 and top.logprobs_TK.dtype == torch.float32
        assert (top.logprobs_TK - expected.values).abs().max() < CLOSE
        assert (top.ids_TK == expected.indices).float().mean() > 0.99  # two that are equal may change places
        assert not set(top.ids_TK.flatten().tolist()) & set(invalid)


def test_a_support_of_all_valid_tokens_is_given_or_is_beyond_the_engine(subject: Subject, models: Models) -> None:
    valid = models.tokenizer.valid_ids
    if not subject.engine.capabilities.full_vocabulary_scores:
        pytest.skip("this engine does not score the whole vocabulary")
    (top,) = subject.engine.score_top_k([[5, 6, 7]], len(valid))
    assert sorted(top.ids_TK[1].tolist()) == valid
    with pytest.raises(UserError, match="only") as caught:
        subject.engine.score_top_k([[5, 6]], len(valid) + 1)
    assert caught.value.exit_code == 3


def test_written_tokens_carry_the_log_probabilities_of_the_plain_policy(subject: Subject, models: Models) -> None:
    for sampling in (PLAIN, SamplingSettings(temperature=0.5, top_p=0.6), GREEDY):
        for prompt, generation in zip(PROMPTS, _generate(subject, models, sampling), strict=True):
            logprobs_TV = models.logprobs("first", [*prompt, *generation.ids])[len(prompt) - 1 : -1]
            expected = logprobs_TV.gather(1, torch.tensor(generation.ids)[:, None]).squeeze(1).tolist()
            assert generation.logprobs == pytest.approx(expected, abs=CLOSE)


def test_a_generation_ends_at_its_own_limit_or_with_the_stop_token(subject: Subject, models: Models) -> None:
    stopped, limits = 0, [12, 20, 1] * 30
    for seed in range(2):
        written = subject.engine.generate(PROMPTS * 30, limits=limits, sampling=PLAIN, stop_ids=[_stop_of(models)], seed=seed)
        for generation, limit in zip(written, limits, strict=True):
            assert 1 <= len(generation.ids) == len(generation.logprobs) <= limit
            assert generation.stopped == (generation.ids[-1] == _stop_of(models))
            assert _stop_of(models) not in generation.ids[:-1]
            assert generation.stopped or len(generation.ids) == limit
            stopped += generation.stopped
    assert stopped, "no row stopped, so the test proves little"


def test_the_seed_decides_and_equal_prompts_of_one_call_are_answered_apart(subject: Subject, models: Models) -> None:
    assert _generate(subject, models, seed=5) == _generate(subject, models, seed=5)
    assert _generate(subject, models, seed=5) != _generate(subject, models, seed=6)
    same = subject.engine.generate([[5, 6]] * 8, limits=[6] * 8, sampling=PLAIN, stop_ids=[], seed=1)
    assert len({one.ids for one in same}) > 1


def test_samples_follow_the_policy(subject: Subject, models: Models) -> None:
    count = 2000
    drawn = subject.engine.generate([[5, 6, 7]] * count, limits=[1] * count, sampling=PLAIN, stop_ids=[], seed=1)
    frequency_V = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=models.tokenizer.vocabulary_size) / count
    assert (frequency_V - models.logprobs("first", [5, 6, 7])[-1].exp()).abs().max() < 0.056  # five standard errors at p = 0.5


def test_loaded_weights_answer_as_a_fresh_engine_does_and_carry_their_version(subject: Subject, models: Models) -> None:
    for version, name in ((1, "second"), (2, "first"), (3, "second")):
        subject.load(name, policy_version=version)
        assert subject.engine.policy_version == subject.engine.identity().policy_version == version
        assert _first_gap(subject, models, name) < CLOSE


def test_no_cached_prefix_outlives_the_weights_that_it_was_computed_with(subject: Subject, models: Models) -> None:
    for version, name in ((1, "second"), (2, "first")):
        subject.engine.generate([PROMPTS[0]], limits=[1], sampling=GREEDY, stop_ids=[], seed=0)  # its blocks are cached now
        subject.load(name, policy_version=version)
        (written,) = subject.engine.generate([PROMPTS[0]], limits=[1], sampling=GREEDY, stop_ids=[], seed=0)
        assert written.logprobs[0] == pytest.approx(models.logprobs(name, PROMPTS[0])[-1].max().item(), abs=CLOSE)


def test_nothing_asked_is_nothing_answered(subject: Subject) -> None:
    assert subject.engine.generate([], limits=[], sampling=PLAIN, stop_ids=[], seed=0) == []
    assert subject.engine.score_tokens([]) == []
    assert subject.engine.score_top_k([], 4) == []


def test_who_answers_is_told(subject: Subject, models: Models) -> None:
    identity = subject.engine.identity()
    assert identity.tokenizer_digest == models.tokenizer.digest
    assert identity.vocabulary == models.tokenizer.vocabulary_size


def test_what_crosses_between_processes_is_counted(subject: Subject) -> None:
    before = subject.engine.traffic.received_bytes, subject.engine.traffic.scored_tokens
    subject.engine.score_tokens(SEQUENCES)
    moved = subject.engine.traffic.received_bytes - before[0], subject.engine.traffic.scored_tokens - before[1]
    scored = sum(len(sequence) - 1 for sequence in SEQUENCES)
    assert moved == (0, 0) if subject.engine.capabilities.embedded else moved[0] > scored and moved[1] == scored


def test_threads_that_ask_at_once_get_their_own_answers(subject: Subject, models: Models) -> None:
    if subject.engine.capabilities.embedded:
        pytest.skip("the embedded engine belongs to one thread")
    alone = [subject.engine.score_tokens([sequence])[0] for sequence in SEQUENCES]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda number: subject.engine.score_tokens([SEQUENCES[number % 3]])[0], range(24)))
    for number, scores_T in enumerate(together):
        assert (scores_T - alone[number % 3]).abs().max() < CLOSE
