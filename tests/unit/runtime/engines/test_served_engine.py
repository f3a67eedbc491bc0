"""Promises of the client of a served engine, against a real server with a tiny model: the embedded engine's answers."""

import contextlib
import copy
import dataclasses
import json
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import TOKENIZER, save_model
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.engines import endpoint, served_engine
from polymath.runtime.engines.completions import Position, read_completions
from polymath.runtime.engines.endpoint import HttpClient, Unreadable, endpoint_of
from polymath.runtime.engines.protocol import SamplingSettings
from polymath.runtime.engines.served_engine import PATIENCE, ServedEngine
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.rollouts import RolloutRequest, collect
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import UserError
from polymath.specs.machine import Service
from polymath.specs.model import Limits
from polymath.specs.reward import Reward
from scripted_engine import ScriptedEngine, served

KEY = "sk-very-secret"
SERVICE = Service(url_env="TEACHER_URL", model="model", key_env="TEACHER_KEY")
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)
STOP = [TOKENIZER.end_of_turn_id]
SEQUENCES = [TOKENIZER.valid_ids[:30], TOKENIZER.valid_ids[40:42], TOKENIZER.valid_ids[100:70:-1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> ScriptedEngine:
    return ScriptedEngine(folder, key=KEY)


@pytest.fixture
def engine(server: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedEngine]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.001)
    server.change, server.asked, server.most_at_once = None, [], 0
    with served(server) as url:
        yield _client(url)


def _client(url: str, key: str = KEY, at_once: int = 8) -> ServedEngine:
    client = HttpClient(
        endpoint_of(SERVICE, "engines.teachers.a", {"TEACHER_URL": url, "TEACHER_KEY": key}), PATIENCE, at_once=at_once
    )
    return ServedEngine(client, "model", TOKENIZER, owner="teacher `a`", vocabulary=TOKENIZER.vocabulary_size)


@pytest.fixture(scope="module")
def embedded(folder: Path) -> TransformersEngine:
    return TransformersEngine(
        folder, tokenizer_digest="", pad_id=TOKENIZER.pad_id, invalid_ids=TOKENIZER.invalid_ids, num_tokens=len(TOKENIZER.hf)
    )


@pytest.mark.parametrize("k", [2, 8, 40])
@pytest.mark.parametrize("slack", [0, 8])
def test_a_support_is_the_embedded_engine_s(
    engine: ServedEngine, embedded: TransformersEngine, k: int, slack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_engine, "SLACK", slack)  # without slack, the second question has to make up for invalid tokens
    for found, expected in zip(engine.score_top_k(SEQUENCES, k), embedded.score_top_k(SEQUENCES, k), strict=True):
        assert (found.ids_TK == expected.ids_TK).all()
        torch.testing.assert_close(found.logprobs_TK, expected.logprobs_TK, atol=1e-5, rtol=0)
        assert TOKENIZER.invalid_ids.isdisjoint(found.ids_TK.flatten().tolist())


def test_scores_of_tokens_are_the_embedded_engine_s(engine: ServedEngine, embedded: TransformersEngine) -> None:
    for found, expected in zip(engine.score_tokens(SEQUENCES), embedded.score_tokens(SEQUENCES), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_greedy_continuations_are_the_embedded_engine_s(engine: ServedEngine, embedded: TransformersEngine) -> None:
    limits = [9, 1, 20]
    found = engine.generate(SEQUENCES, limits=limits, sampling=GREEDY, stop_ids=STOP, seed=0)
    for one, expected in zip(
        found, embedded.generate(SEQUENCES, limits=limits, sampling=GREEDY, stop_ids=STOP, seed=0), strict=True
    ):
        assert (one.ids, one.stopped) == (expected.ids, expected.stopped)
        assert one.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_a_call_draws_the_same_tokens_again_and_equal_prompts_are_answered_apart(engine: ServedEngine) -> None:
    prompts = [SEQUENCES[0]] * 4
    first, second = (engine.generate(prompts, limits=[12] * 4, sampling=PLAIN, stop_ids=STOP, seed=3) for _ in range(2))
    assert first == second and len({one.ids for one in first}) > 1


def test_settings_of_the_server_s_folder_never_apply(engine: ServedEngine, server: ScriptedEngine) -> None:
    engine.policy_version = 7
    engine.generate(SEQUENCES[:1], limits=[2], sampling=SamplingSettings(temperature=0.7, top_p=0.9), stop_ids=STOP, seed=0)
    question = server.asked[-1][1]
    assert (question["temperature"], question["top_p"], question["top_k"], question["min_p"]) == (0.7, 0.9, 0, 0.0)
    assert question["repetition_penalty"] == 1.0 and question["ignore_eos"] and question["stop_token_ids"] == STOP
    assert question["cache_salt"] == "version-7"  # a prefix cache of other weights is never used


def test_greedy_episodes_are_those_that_the_embedded_engine_plays_in_lockstep(
    engine: ServedEngine, embedded: TransformersEngine
) -> None:
    worlds = {name: make_world(name, {}) for name in ("search", "tools")}
    renderers = {name: Renderer(TOKENIZER, world.tools) for name, world in worlds.items()}
    limits = Limits(turns=4, response_tokens=10, context_tokens=90)
    requests = [
        RolloutRequest(domain=name, task=task, limits=limits, reward=Reward())
        for name, world in worlds.items()
        for task in world.tasks("train", 6, 0)
    ]
    found, expected = (collect(one, renderers, worlds, requests, GREEDY, seed=0) for one in (engine, embedded))
    assert [(one.ids, one.status, one.reward) for one in found] == [(one.ids, one.status, one.reward) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_many_sequences_go_in_requests_of_bounded_size(
    engine: ServedEngine, server: ScriptedEngine, embedded: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_engine, "SCORED_POSITIONS", 64)
    many = SEQUENCES * 5
    for found, expected in zip(engine.score_tokens(many), embedded.score_tokens(many), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    sizes = [sum(map(len, question["prompt"])) for _, question in server.asked]
    assert len(sizes) > 1 and max(sizes) <= 64 and sum(sizes) == sum(map(len, many))
    assert server.most_at_once <= 8


def test_no_more_requests_are_out_than_allowed_however_many_threads_ask(server: ScriptedEngine) -> None:
    server.change, server.most_at_once, server.delay_seconds = None, 0, 0.02
    try:
        with served(server) as url, ThreadPoolExecutor(16) as threads:
            engine = _client(url, at_once=3)
            list(threads.map(lambda _: engine.score_tokens(SEQUENCES), range(16)))
    finally:
        server.delay_seconds = 0.0
    assert server.most_at_once == 3


def _answer(positions: int, k: int) -> bytes:
    entry = {str(100 + i): {"logprob": -float(i), "rank": i + 1, "decoded_token": '"},{[null'} for i in range(k)}
    choice = {"index": 0, "text": '"prompt_logprobs":[', "prompt_logprobs": [None, *[entry] * (positions - 1)], "token_ids": [1]}
    return json.dumps({"choices": [choice, {**choice, "index": 1}]}).encode()


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 16])
def test_an_answer_is_read_the_same_however_it_is_cut_into_pieces(size: int) -> None:
    body, found = _answer(40, 9), []
    choices = read_completions(
        (body[start : start + size] for start in range(0, len(body), size)), lambda *position: found.append(position)
    )
    assert [choice["token_ids"] for choice in choices] == [[1], [1]]
    assert [(row, position) for row, position, _ in found] == [(row, position) for row in range(2) for position in range(40)]
    assert found[0][2] is None and found[-1][2].ids == list(range(100, 109))


def test_reading_a_large_answer_keeps_next_to_nothing_of_it() -> None:
    body = _answer(2000, 40)
    tracemalloc.start()
    try:
        read_completions((body[start : start + 65_536] for start in range(0, len(body), 65_536)), lambda *_: None)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 < len(body) / 10
    finally:
        tracemalloc.stop()


def test_a_wrong_key_and_a_wrong_name_are_refused_at_once_and_the_key_is_not_shown(server: ScriptedEngine) -> None:
    server.change, server.asked = None, []
    with served(server) as url:
        with pytest.raises(UserError, match=r"the engine of teacher `a` at http://127.* refuses: status 401") as caught:
            _client(url, key="sk-another").score_tokens(SEQUENCES[:1])
        assert "sk-another" not in str(caught.value) and len(server.asked) == 1
        stranger = _client(url)
        stranger.model = "another"
        with pytest.raises(UserError, match="refuses: status 404"):
            stranger.score_tokens(SEQUENCES[:1])


def test_the_bytes_of_answers_are_counted(engine: ServedEngine) -> None:
    engine.score_top_k(SEQUENCES, 8)
    scored = sum(len(sequence) - 1 for sequence in SEQUENCES)
    assert engine.traffic.scored_tokens == scored and engine.traffic.sent_bytes > scored
    assert 8 * 40 < engine.traffic.received_bytes / scored < 17 * 100


CONTINUED: Any = {"index": 0, "finish_reason": "length", "token_ids": [5, 6], "logprobs": {"token_logprobs": [-0.1, -0.2]}}
SCORED: Any = {"index": 0, "prompt_logprobs": [None, {"6": {"logprob": -1.0}}, {"7": {"logprob": -1.0}, "8": {"logprob": -2.0}}]}
JUNK = (
    None, True, -1, 0, 1e400, float("nan"), "x", [], {}, [1], {"a": 1}, 10**30, "\ud800", -0.5, [None], 999_999,
    {"999999": {"logprob": -0.1}, "6": {"logprob": -1.0}}, {"-1": {"logprob": -0.1}, "6": {"logprob": -1.0}}, {"6": None},
)  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*at, key))


def _spoilt(answer: Any) -> Iterator[bytes]:
    """The answer with junk at every place of it in turn."""
    for *way, last in [at for at in _places(answer) if at]:
        for junk in JUNK:
            spoilt = copy.deepcopy(answer)
            place = spoilt
            for key in way:
                place = place[key]
            place[last] = junk
            yield json.dumps(spoilt).encode()


def test_whatever_a_server_answers_is_of_the_form_or_is_refused_as_unreadable() -> None:
    read, vocabulary = 0, 100
    for body in _spoilt({"choices": [CONTINUED]}):
        with contextlib.suppress(Unreadable):
            made = served_engine._generation(read_completions(iter([body])), 2, [9], vocabulary)
            assert all(type(one) is int and 0 <= one < vocabulary for one in made.ids) and all(one <= 0 for one in made.logprobs)
            read += 1
    for body in _spoilt({"choices": [SCORED]}):
        taken: list[int] = []

        def take(row: int, position: int, found: Position, taken: list[int] = taken) -> None:
            taken += found.ids

        with contextlib.suppress(Unreadable):
            reader = served_engine._ScoreReader([[5, 6, 7]], 1, vocabulary, take)
            reader.finish(read_completions(iter([body]), reader))
            assert len(taken) in (2, 3) and all(0 <= one < vocabulary for one in taken)
            read += 1
    assert read, "nothing was taken, so the test proves little"


def test_more_tokens_than_may_be_written_are_refused_before_anything_is_asked(engine: ServedEngine, server: ScriptedEngine) -> None:
    with pytest.raises(UserError, match=r"only [0-9]+ of the [0-9]+ ids of teacher `a`") as caught:
        engine.score_top_k(SEQUENCES, len(TOKENIZER.valid_ids) + 1)
    assert caught.value.exit_code == 3 and not server.asked


@pytest.mark.parametrize("before", [0, 150, 190])
@pytest.mark.parametrize("status", [401, 200, 500])
def test_no_part_of_a_key_is_shown_however_a_server_repeats_it(
    engine: ServedEngine, server: ScriptedEngine, status: int, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_answer", lambda *_: (status, b"." * before + f"{KEY!r} {KEY}".encode()))
    engine.client.patience = dataclasses.replace(PATIENCE, attempts=2)
    with pytest.raises(UserError) as caught:
        engine.score_tokens(SEQUENCES[:1])
    assert "***" in str(caught.value) and KEY[:8] not in str(caught.value)
