"""Promises of rollouts: statuses, limits, append-only tokens, retries. A scripted engine plays in real and in broken worlds."""

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymath.runtime import rollouts
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines.protocol import Capabilities, EngineInterrupted, EngineSilent, Generation, SamplingSettings
from polymath.runtime.judging import Transcript, Verdict
from polymath.runtime.rollouts import RolloutProgress, RolloutRequest, Trajectory, collect
from polymath.runtime.worlds.protocol import Message, Step, Task, World
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import UserError
from polymath.specs.model import Finalize, Limits, Model
from polymath.specs.reward import Reward

TOKENIZER = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words"))
ROOMY = Limits(turns=6, response_tokens=12, context_tokens=128)
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0)


class OracleEngine:
    """Writes what the world's oracle would, found by the prompt it is shown; token i of a turn gets log-probability -i."""

    policy_version = 5
    capabilities = Capabilities(full_vocabulary_scores=False, expert_choices=False)

    def __init__(self, worlds: dict[str, World], renderers: dict[str, Renderer], tasks: Sequence[tuple[str, Task]]) -> None:
        self.batches: list[int] = []
        self._next: dict[tuple[int, ...], list[int]] = {}
        for name, task in tasks:
            renderer, episode = renderers[name], worlds[name].start(task)
            solver = worlds[name].demonstrator(task, seed=0, habit_rate=0.0, slip_rate=0.0)
            ids, observations = renderer.open(episode.opening()), []
            while not episode.done:
                turn = renderer.turn(solver.next(observations))
                self._next[tuple(ids)] = turn
                observations = episode.act(renderer.parse(turn))
                ids = ids + turn + ([] if episode.done else renderer.extend(observations))

    def generate(self, prompts: Sequence[Sequence[int]], *, limits: Sequence[int], **_: Any) -> list[Generation]:
        self.batches.append(len(prompts))
        generations = []
        for prompt, limit in zip(prompts, limits, strict=True):
            turn = self._next[tuple(prompt)]
            ids = tuple(turn[:limit])
            generations.append(Generation(ids=ids, logprobs=tuple(-float(i) for i in range(len(ids))), stopped=len(turn) <= limit))
        return generations


def _setup(*names: str, count: int = 2) -> tuple[OracleEngine, dict[str, Renderer], dict[str, World], list[tuple[str, Task]]]:
    worlds = {name: make_world(name, {}) for name in names}
    renderers = {name: Renderer(TOKENIZER, world.tools) for name, world in worlds.items()}
    tasks = [(name, task) for name, world in worlds.items() for task in world.tasks("train", count, 0)]
    return OracleEngine(worlds, renderers, tasks), renderers, worlds, tasks


def _requests(tasks: Sequence[tuple[str, Task]], limits: Limits = ROOMY) -> list[RolloutRequest]:
    reward = Reward(outcome=1.0, format=0.1)
    return [RolloutRequest(domain=name, task=task, limits=limits, reward=reward, group=i) for i, (name, task) in enumerate(tasks)]


def _play_search(limits: Limits) -> tuple[Trajectory, Trajectory, list[list[int]]]:
    """The first search task under limits and without, and the oracle's turns."""
    engine, renderers, worlds, tasks = _setup("search", count=1)
    (full,) = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    (cut,) = collect(engine, renderers, worlds, _requests(tasks, limits), PLAIN, seed=0)
    assert full.status == "COMPLETED"
    assert cut.ids == full.ids[: len(cut.ids)] and cut.written == full.written[: len(cut.ids)]
    turns: list[list[int]] = []
    for position, written in enumerate(full.written):
        if written and not full.written[position - 1]:
            turns.append([])
        if written:
            turns[-1].append(full.ids[position])
    return cut, full, turns


def test_the_oracle_completes_every_episode_in_lockstep_and_in_order() -> None:
    engine, renderers, worlds, tasks = _setup("search", "instructions", "tools")
    trajectories = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    assert [(one.domain, one.task_key, one.group) for one in trajectories] == [(n, t.key, i) for i, (n, t) in enumerate(tasks)]
    for one in trajectories:
        assert (one.status, one.outcome, one.reward, one.interruptions) == ("COMPLETED", 1.0, pytest.approx(1.1), 0)
        assert one.policy_version == 5
    assert engine.batches[0] == 6 and engine.batches == sorted(engine.batches, reverse=True)
    assert len(engine.batches) == max(one.turns for one in trajectories)


def test_tokens_are_the_rendering_of_the_conversation_and_logprobs_stand_at_written_ones() -> None:
    engine, renderers, worlds, tasks = _setup("search", count=1)
    (trajectory,) = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    episode = worlds["search"].start(tasks[0][1])
    messages = episode.opening()
    solver, observations = worlds["search"].demonstrator(tasks[0][1], seed=0, habit_rate=0, slip_rate=0), []
    while not episode.done:
        messages.append(solver.next(observations))
        observations = episode.act(messages[-1])
        messages += observations
    rendered = renderers["search"].render(messages)
    assert (trajectory.ids, trajectory.written) == (rendered.ids, rendered.written)
    assert len(trajectory.logprobs) == len(trajectory.ids)
    assert all(logprob == 0 for logprob, written in zip(trajectory.logprobs, trajectory.written, strict=True) if not written)
    assert sum(trajectory.logprobs) < 0


def test_the_turn_limit_keeps_the_prefix_without_the_observation() -> None:
    cut, _, turns = _play_search(Limits(turns=2, response_tokens=12, context_tokens=128))
    assert (cut.status, cut.turns, cut.outcome) == ("TRUNCATED", 2, 0.0)
    assert sum(cut.written) == len(turns[0]) + len(turns[1]) and cut.written[-1]


def test_a_call_beyond_the_limit_is_not_served_and_an_answer_is_no_call() -> None:
    full, _, turns = _play_search(ROOMY)
    calls = len(turns) - 1  # all but the answer
    roomy, _, _ = _play_search(Limits(turns=6, response_tokens=12, context_tokens=128, tool_calls=calls))
    assert (roomy.ids, roomy.status) == (full.ids, "COMPLETED")
    cut, _, _ = _play_search(Limits(turns=6, response_tokens=12, context_tokens=128, tool_calls=calls - 1))
    assert (cut.status, cut.turns, cut.outcome) == ("TRUNCATED", calls, 0.0) and cut.written[-1]


def test_the_response_limit_keeps_the_written_part_without_an_end_of_turn() -> None:
    cut, _, turns = _play_search(Limits(turns=6, response_tokens=4, context_tokens=128))
    assert (cut.status, cut.turns) == ("TRUNCATED", 1)
    assert list(cut.ids[-4:]) == turns[0][:4] and cut.ids[-1] != TOKENIZER.end_of_turn_id
    assert cut.reward == 0.0  # a cut-off turn is not readable, and the episode never finished


@pytest.mark.parametrize("context_tokens", range(8, 50))
def test_no_episode_is_longer_than_its_context(context_tokens: int) -> None:
    cut, full, _ = _play_search(Limits(turns=6, response_tokens=12, context_tokens=context_tokens))
    assert len(cut.ids) <= context_tokens
    assert cut.status == ("COMPLETED" if len(full.ids) <= context_tokens else "TRUNCATED")
    assert cut.written[-1] or not any(cut.written)  # an observation that nothing could follow is not kept


class BrokenWorld:
    """A world whose calls fail a number of times."""

    def __init__(self, world: World, failures: int, where: str) -> None:
        self.tools, self.name = world.tools, world.name
        self._world, self._failures, self._where = world, failures, where

    def start(self, task: Task) -> Any:
        episode = self._world.start(task)
        inner = getattr(episode, self._where)

        class Broken:
            def __getattr__(_, name: str) -> Any:
                return self._breaking(inner) if name == self._where else getattr(episode, name)

        return Broken()

    def _breaking(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._failures:
                self._failures -= 1
                raise ConnectionError("the sandbox is gone")
            return inner(*arguments)

        return call


@pytest.mark.parametrize("where", ["opening", "act", "outcome"])
def test_an_interrupted_episode_is_played_again_and_counted(where: str) -> None:
    engine, renderers, worlds, tasks = _setup("search", count=1)
    (whole,) = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    worlds["search"] = BrokenWorld(worlds["search"], 2, where)  # type: ignore[assignment]
    (trajectory,) = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    assert trajectory.interruptions == 2
    assert (trajectory.status, trajectory.ids, trajectory.turns) == ("COMPLETED", whole.ids, whole.turns)


@pytest.mark.parametrize("where", ["opening", "act"])
def test_the_third_interruption_ends_the_run_naming_the_task_and_the_cause(where: str) -> None:
    engine, renderers, worlds, tasks = _setup("search", count=1)
    worlds["search"] = BrokenWorld(worlds["search"], 3, where)  # type: ignore[assignment]
    with pytest.raises(UserError, match="the sandbox is gone") as caught:
        collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    assert caught.value.exit_code == 6 and tasks[0][1].key in str(caught.value)


def test_an_interrupted_engine_is_asked_again() -> None:
    engine, renderers, worlds, tasks = _setup("instructions")
    generate, failures = engine.generate, [1]

    def sometimes(*arguments: Any, **settings: Any) -> list[Generation]:
        if failures:
            failures.pop()
            raise EngineInterrupted("no answer within 60 s")
        return generate(*arguments, **settings)

    engine.generate = sometimes  # type: ignore[method-assign]
    trajectories = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    assert [(one.status, one.interruptions) for one in trajectories] == [("COMPLETED", 1)] * 2


def _side_by_side(engine: OracleEngine) -> OracleEngine:
    engine.capabilities = replace(engine.capabilities, concurrent=True)
    return engine


def test_side_by_side_and_in_lockstep_episodes_are_the_same() -> None:
    engine, renderers, worlds, tasks = _setup("search", "instructions", "tools")
    lockstep = collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)
    engine.batches.clear()
    assert collect(_side_by_side(engine), renderers, worlds, _requests(tasks), PLAIN, seed=0) == lockstep
    assert set(engine.batches) == {1} and len(engine.batches) == sum(one.turns for one in lockstep)


@pytest.mark.parametrize("limits", [replace(ROOMY, turns=2), replace(ROOMY, response_tokens=4), replace(ROOMY, context_tokens=30)])
def test_limits_cut_episodes_off_side_by_side_as_in_lockstep(limits: Limits) -> None:
    engine, renderers, worlds, tasks = _setup("search", "tools")
    lockstep = collect(engine, renderers, worlds, _requests(tasks, limits), PLAIN, seed=0)
    assert collect(_side_by_side(engine), renderers, worlds, _requests(tasks, limits), PLAIN, seed=0) == lockstep
    assert {one.status for one in lockstep} >= {"TRUNCATED"}


def test_no_more_episodes_than_allowed_are_side_by_side_and_a_slow_one_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "EPISODES_AT_ONCE", 3)
    monkeypatch.setattr(rollouts, "TELL_SECONDS", 0.0)
    engine, renderers, worlds, tasks = _setup("instructions", count=12)
    generate, lock, seen = engine.generate, threading.Lock(), {"now": 0, "most": 0}

    def slowly(*arguments: Any, **settings: Any) -> list[Generation]:
        with lock:
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        time.sleep(0.3 if seen["most"] == 1 else 0.01)
        with lock:
            seen["now"] -= 1
        return generate(*arguments, **settings)

    engine.generate = slowly  # type: ignore[method-assign]
    told: list[RolloutProgress] = []
    trajectories = collect(_side_by_side(engine), renderers, worlds, _requests(tasks), PLAIN, seed=0, on_progress=told.append)
    assert seen["most"] == 3 and len(trajectories) == 12
    assert [one.done for one in told] == sorted(one.done for one in told) and told[-1].done == 12
    assert told[-1].finished == {"COMPLETED": 12} and told[-1].tokens == sum(len(one.ids) for one in trajectories)


class Heavy:
    """A world of one question whose episodes are counted while they are there."""

    tools = ()
    name = "heavy"

    def __init__(self) -> None:
        self.open, self.most, self._lock = 0, 0, threading.Lock()

    def _count(self, change: int) -> None:
        with self._lock:
            self.open += change
            self.most = max(self.most, self.open)

    def start(self, task: Task) -> Any:
        world = self

        class Open:
            def __init__(self) -> None:
                self.done, self.steps = False, [Step(state={}, action={}, observation=None, verdict=1.0, readable=True)]
                world._count(1)
                weakref.finalize(self, world._count, -1)

            def opening(self) -> list[Message]:
                return [{"role": "user", "content": "ok"}]

            def act(self, message: Message) -> list[Message]:
                self.done = message["content"] == "done"
                return [] if self.done else [{"role": "user", "content": "no"}]

            def outcome(self) -> float:
                return 1.0

        return Open()


@pytest.mark.parametrize("concurrent", [False, True])
def test_ten_thousand_requests_hold_no_more_open_episodes_than_are_played_at_once(concurrent: bool) -> None:
    class Quick:
        policy_version = 0
        capabilities = replace(OracleEngine.capabilities, concurrent=concurrent)

        def generate(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[Generation]:
            seen.append(len(prompts))
            ends = [TOKENIZER.literal_ids("done <end>" if next(number) % 3 else "ok <end>") for _ in prompts]
            return [Generation(ids=tuple(ids), logprobs=(-1.0,) * len(ids), stopped=True) for ids in ends]

    seen, number = list[int](), itertools.count()
    engine, heavy, renderer = Quick(), Heavy(), Renderer(TOKENIZER)
    task = Task(world="heavy", key="k", payload={})
    limits = Limits(turns=2, response_tokens=4, context_tokens=64)
    requests = [RolloutRequest(domain="heavy", task=task, limits=limits, reward=Reward(steps=1.0))] * 10_000
    played = collect(engine, {"heavy": renderer}, {"heavy": heavy}, requests, PLAIN, seed=0)  # type: ignore[arg-type,dict-item]
    assert len(played) == 10_000 and {one.status for one in played} == {"COMPLETED", "TRUNCATED"}
    assert {one.process for one in played} == {1.0}
    assert heavy.most <= rollouts.EPISODES_AT_ONCE and heavy.open == 0
    assert max(seen) == (1 if concurrent else rollouts.EPISODES_AT_ONCE)


def test_an_interrupted_episode_is_played_again_alone_side_by_side_and_an_engine_that_is_gone_ends_all() -> None:
    engine, renderers, worlds, tasks = _setup("instructions", count=6)
    generate, failures = engine.generate, [1]

    def sometimes(*arguments: Any, **settings: Any) -> list[Generation]:
        if failures:
            failures.pop()
            raise EngineInterrupted("given up")
        return generate(*arguments, **settings)

    engine.generate = sometimes  # type: ignore[method-assign]
    trajectories = collect(_side_by_side(engine), renderers, worlds, _requests(tasks), PLAIN, seed=0)
    assert sorted(one.interruptions for one in trajectories) == [0] * 5 + [1]

    def gone(*_: Any, **settings: Any) -> list[Generation]:
        raise EngineSilent("the engine", "connection refused")

    engine.generate = gone  # type: ignore[method-assign]
    with pytest.raises(EngineSilent):
        collect(engine, renderers, worlds, _requests(tasks), PLAIN, seed=0)


@pytest.mark.parametrize("concurrent", [False, True])
def test_an_episode_that_takes_too_long_is_cut_off_between_turns_and_kept(concurrent: bool) -> None:
    engine, renderers, worlds, tasks = _setup("search", count=1)
    engine = _side_by_side(engine) if concurrent else engine
    (whole,) = collect(engine, renderers, worlds, _requests(tasks, replace(ROOMY, wall_seconds=60.0)), PLAIN, seed=0)
    (cut,) = collect(engine, renderers, worlds, _requests(tasks, replace(ROOMY, wall_seconds=1e-9)), PLAIN, seed=0)
    assert (whole.status, cut.status, cut.turns) == ("COMPLETED", "TRUNCATED", 1)
    assert cut.ids == whole.ids[: len(cut.ids)] and cut.written[-1]


class StubJudge:
    """Takes every answer for wrong and every step for half right."""

    def __init__(self) -> None:
        self.seen: list[Transcript] = []

    def verdicts(self, transcripts: Sequence[Transcript]) -> list[Verdict]:
        self.seen += transcripts
        return [Verdict(outcome=0.0, process=0.5) for _ in transcripts]


def test_a_judge_s_word_replaces_the_world_s_in_outcome_process_and_reward() -> None:
    engine, renderers, worlds, tasks = _setup("search", count=2)
    reward = Reward(outcome=1.0, format=0.1, steps=0.5)
    requests = [RolloutRequest(domain=name, task=task, limits=ROOMY, reward=reward) for name, task in tasks]
    for one in collect(engine, renderers, worlds, requests, PLAIN, seed=0):
        assert (one.outcome, one.process, one.reward) == (1.0, 1.0, pytest.approx(1.6))
    judge = StubJudge()
    for one in collect(engine, renderers, worlds, requests, PLAIN, seed=0, judge=judge):
        assert (one.outcome, one.process, one.reward) == (0.0, 0.5, pytest.approx(0.35))
    roles = [message["role"] for message in judge.seen[0].messages]
    assert (
        roles == ["user", *["assistant", "tool"] * 4, "assistant"] and judge.seen[0].answer == judge.seen[0].messages[-1]["content"]
    )


def test_an_episode_that_a_limit_cut_off_is_shown_to_the_judge_without_an_answer() -> None:
    engine, renderers, worlds, tasks = _setup("search", count=1)
    judge = StubJudge()
    collect(engine, renderers, worlds, _requests(tasks, replace(ROOMY, turns=2)), PLAIN, seed=0, judge=judge)
    assert judge.seen[0].answer is None


BYTES = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes"))
MARKS = list(BYTES.call_ids)
TEXTS = ('{"name": "search", "arguments": {', '{"name": "find_customer", "arguments": {"name": 3}}', "{}", "[", "}", "a")
pieces = st.one_of(
    st.sampled_from(MARKS).map(lambda mark: [mark]),
    st.sampled_from(TEXTS).map(lambda text: list(text.encode())),
    st.lists(st.integers(0, 255), max_size=6),
)
turns = st.lists(pieces, max_size=5).map(lambda parts: [token for part in parts for token in part])
BROKEN_WORLDS = {name: make_world(name, {}) for name in ("search", "tools", "engineering", "tool_subgraphs", "constraints")}
BROKEN_TASKS = {name: world.tasks("train", 1, 0)[0] for name, world in BROKEN_WORLDS.items()}
BROKEN_RENDERERS = {name: Renderer(BYTES, world.tools) for name, world in BROKEN_WORLDS.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(turns, min_size=1, max_size=4))
def test_whatever_a_policy_writes_every_world_answers_and_no_episode_is_interrupted(written: list[list[int]]) -> None:
    class Babbler:
        policy_version = 0
        capabilities = OracleEngine.capabilities
        turn = 0

        def generate(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[Generation]:
            ids = (*written[self.turn % len(written)], BYTES.end_of_turn_id)
            self.turn += 1
            return [Generation(ids=ids, logprobs=(-1.0,) * len(ids), stopped=True) for _ in prompts]

    limits = Limits(turns=4, response_tokens=400, context_tokens=20_000)
    requests = [RolloutRequest(domain=name, task=task, limits=limits, reward=Reward()) for name, task in BROKEN_TASKS.items()]
    engine: Any = Babbler()
    for one in collect(engine, BROKEN_RENDERERS, BROKEN_WORLDS, requests, PLAIN, seed=0):
        assert one.interruptions == 0 and one.status in ("COMPLETED", "TRUNCATED")


@pytest.mark.parametrize("name", BROKEN_WORLDS)
def test_a_call_that_cannot_be_read_is_answered_and_the_episode_goes_on(name: str) -> None:
    renderer, episode = BROKEN_RENDERERS[name], BROKEN_WORLDS[name].start(BROKEN_TASKS[name])
    broken = renderer.parse([MARKS[0], *b'{"name": "sea', MARKS[1], BYTES.end_of_turn_id])
    (observation,) = episode.act(broken)
    assert observation["role"] == "tool" and observation["content"] and not episode.done
    assert not episode.steps[-1].readable


ASKED = Finalize(prompt="done")
CAPS = {
    "turns": Limits(turns=3, response_tokens=12, context_tokens=128, finalize=ASKED),
    "tool_calls": Limits(turns=6, response_tokens=12, context_tokens=128, tool_calls=2, finalize=ASKED),
    "context_tokens": Limits(turns=6, response_tokens=12, context_tokens=47, finalize=ASKED),
}


class ForcedEngine(OracleEngine):
    """The oracle, which also knows what to say when it is asked: `says`, or its own answer."""

    says: list[int] | None = None

    def generate(self, prompts: Sequence[Sequence[int]], *, limits: Sequence[int], **settings: Any) -> list[Generation]:
        self.seeds = [*getattr(self, "seeds", ()), settings["seed"]]
        return [self._one(list(prompt), limit, settings) for prompt, limit in zip(prompts, limits, strict=True)]

    def _one(self, prompt: list[int], limit: int, settings: dict[str, Any]) -> Generation:
        asked = TOKENIZER.literal_ids("<user> done <model>")
        if tuple(prompt[-len(asked) :]) != asked:
            return super().generate([prompt], limits=[limit], **settings)[0]
        says = self.says or TOKENIZER.literal_ids("none <end>")
        return Generation(ids=tuple(says[:limit]), logprobs=(-9.0,) * len(says[:limit]), stopped=len(says) <= limit)


def _forced(limits: Limits, says: str | None = None, *, concurrent: bool = False, count: int = 1) -> tuple[list[Trajectory], Any]:
    _, renderers, worlds, tasks = _setup("search", count=count)
    engine = ForcedEngine(worlds, renderers, tasks)
    engine.capabilities = replace(engine.capabilities, concurrent=concurrent)
    engine.says = None if says is None else list(TOKENIZER.literal_ids(says))
    judge = StubJudge()
    return collect(engine, renderers, worlds, _requests(tasks, limits), PLAIN, seed=0, judge=judge), (engine, judge)


@pytest.mark.parametrize("cap", CAPS)
def test_at_a_limit_one_turn_is_rolled_back_and_the_answer_that_a_user_asks_for_is_trained_on(cap: str) -> None:
    limits = CAPS[cap]
    (forced,), (engine, judge) = _forced(limits)
    _, full, turns = _play_search(ROOMY)
    assert (forced.status, forced.turns) == ("FORCED", 3) and len(forced.ids) <= limits.context_tokens
    assert TOKENIZER.decode(list(forced.ids)).endswith("<user> done <model> none <end>")
    answer, asked = TOKENIZER.literal_ids("none <end>"), TOKENIZER.literal_ids("<user> done <model>")
    kept = len(forced.ids) - len(answer) - len(asked)
    assert forced.written[kept:] == (False,) * len(asked) + (True,) * len(answer), "the prompt is context, the answer is trained on"
    assert forced.logprobs[kept + len(asked) :] == (-9.0,) * len(answer)
    # What is left of the episode is the whole one's beginning, cut at the mark of the turn that is gone.
    assert forced.ids[:kept] == full.ids[:kept] and forced.written[:kept] == full.written[:kept]
    assert sum(forced.written) == len(turns[0]) + len(turns[1]) + len(answer)
    assert [one["role"] for one in judge.seen[0].messages] == ["user", *["assistant", "tool"] * 2, "user", "assistant"]
    assert judge.seen[0].answer == "none"
    assert len(set(engine.seeds)) == len(engine.seeds), "the answer is not drawn with the turn's random numbers"


@pytest.mark.parametrize("cap", CAPS)
def test_forced_answers_are_the_same_side_by_side_and_in_lockstep(cap: str) -> None:
    lockstep, _ = _forced(CAPS[cap], count=4)
    side_by_side, (engine, _) = _forced(CAPS[cap], count=4, concurrent=True)
    assert side_by_side == lockstep and len(set(engine.seeds)) == len(engine.seeds)
    assert "FORCED" in {one.status for one in lockstep}


@pytest.mark.parametrize("says", ["<call> search ada <end>", "none none none none none none none none none none none none none"])
def test_a_call_or_a_turn_without_end_in_place_of_the_answer_is_cut_off(says: str) -> None:
    (cut,), (engine, judge) = _forced(CAPS["turns"], says)
    assert (cut.status, cut.turns, cut.outcome) == ("TRUNCATED", 3, 0.0) and judge.seen[0].answer is None
    assert len(engine.seeds) == 4, "an answer is asked for once"


@pytest.mark.parametrize("cap", CAPS)
def test_the_turn_that_is_rolled_back_counts_nowhere_in_the_reward(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(rollouts, "compose_reward", lambda _, **of: seen.append(of) or 0.0)
    _forced(CAPS[cap])
    assert [len(seen[0][what]) for what in ("actions", "steps")] == [3, 3] and seen[0]["cut_off_turns"] == 0


def test_an_episode_that_answers_in_time_is_as_without_a_forced_answer() -> None:
    (plain,), _ = _forced(ROOMY)
    (in_time,), _ = _forced(replace(ROOMY, finalize=ASKED))
    assert in_time == plain and plain.status == "COMPLETED"


@pytest.mark.parametrize("context_tokens", range(14, 70))
def test_room_for_the_forced_answer_is_kept_free(context_tokens: int) -> None:
    limits = replace(CAPS["context_tokens"], context_tokens=context_tokens)
    (one,), _ = _forced(limits, "none none none none none none none none none none none <end>")
    assert len(one.ids) <= context_tokens
    if one.status == "TRUNCATED":  # not even the question and one word leave room for asking and answering
        assert not any(one.written)
    else:
        assert one.written[-1] and one.ids[-1] == TOKENIZER.end_of_turn_id


def test_a_call_at_the_cap_changes_nothing_in_the_world() -> None:
    _, renderers, worlds, tasks = _setup("search", count=1)
    served: list[Any] = []
    start = worlds["search"].start

    def watched(task: Task) -> Any:
        episode = start(task)
        act = episode.act
        served.clear()

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return (lambda message: served.append(message) or act(message)) if name == "act" else getattr(episode, name)

        return Watched()

    engine = ForcedEngine(worlds, renderers, tasks)
    worlds["search"].start = watched  # type: ignore[method-assign]
    (forced,) = collect(engine, renderers, worlds, _requests(tasks, CAPS["turns"]), PLAIN, seed=0)
    assert forced.status == "FORCED" and len(served) == 3 and "tool_calls" not in served[-1]


def test_a_prompt_that_the_tokenizer_cannot_write_is_refused_before_anything_is_played() -> None:
    engine, renderers, worlds, tasks = _setup("search", count=1)
    limits = replace(ROOMY, finalize=Finalize(prompt="done already"))
    with pytest.raises(UserError, match=r"'already' of domains\.search\.limits\.finalize\.prompt") as caught:
        collect(engine, renderers, worlds, _requests(tasks, limits), PLAIN, seed=0)
    assert caught.value.exit_code == 3 and not engine.batches
