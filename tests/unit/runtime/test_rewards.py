"""Promises of the composed reward."""

import pytest
from polymath.runtime.rewards import compose_reward, efficiency_penalty, outcome_alone, process_score, repetition_penalty
from polymath.runtime.worlds.protocol import Message, Step
from polymath.specs.reward import Efficiency, Repetition, Reward


def _call(name: str, arguments: str = "{}") -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def _steps(*readable: bool, verdicts: tuple[float | None, ...] = ()) -> list[Step]:
    verdicts = verdicts or (None,) * len(readable)
    return [
        Step(state={}, action={}, observation=None, verdict=verdict, readable=one)
        for one, verdict in zip(readable, verdicts, strict=True)
    ]


def _reward(reward: Reward, *, actions: tuple[Message, ...] = (), steps: tuple[Step, ...] | list[Step] = (), cut: int = 0) -> float:
    return compose_reward(reward, actions=actions, steps=steps, outcome=1.0, process=process_score(steps), cut_off_turns=cut)


def test_by_default_the_reward_is_the_outcome() -> None:
    assert _reward(Reward(), actions=(_call("a"), _call("a")), steps=_steps(False)) == 1.0


def test_format_is_the_share_of_readable_steps_and_a_cut_off_turn_is_not_readable() -> None:
    assert _reward(Reward(outcome=0, format=0.4), steps=_steps(True, False)) == pytest.approx(0.2)
    assert _reward(Reward(outcome=0, format=0.4), steps=_steps(True), cut=1) == pytest.approx(0.2)
    assert _reward(Reward(outcome=0, format=0.4)) == 0.0


def test_step_verdicts_are_averaged_where_there_are_any() -> None:
    steps = _steps(True, True, True, verdicts=(1.0, None, 0.0))
    assert _reward(Reward(outcome=0, steps=2.0), steps=steps) == pytest.approx(1.0)
    assert _reward(Reward(outcome=0, steps=2.0), steps=_steps(True)) == 0.0


def test_calls_beyond_the_free_ones_cost() -> None:
    reward = Reward(outcome=0, efficiency=Efficiency(weight=-0.1, free_calls=2))
    assert _reward(reward, actions=(_call("a"),) * 2) == 0.0
    assert _reward(reward, actions=(_call("a"),) * 5) == pytest.approx(-0.3)


def test_a_repeated_call_costs_only_within_the_window() -> None:
    reward = Reward(outcome=0, repetition=Repetition(weight=-0.5, window=2))
    a, b, c = _call("a"), _call("b"), _call("a", '{"x": 1}')
    assert _reward(reward, actions=(a, b, c)) == 0.0
    assert _reward(reward, actions=(a, b, a)) == pytest.approx(-0.5)
    assert _reward(reward, actions=(a, b, c, a)) == 0.0


def test_efficiency_is_free_for_the_first_calls_and_linear_after() -> None:
    efficiency = Efficiency(weight=-0.1, free_calls=3)
    assert [efficiency_penalty(efficiency, calls) for calls in range(7)] == pytest.approx([0, 0, 0, 0, -0.1, -0.2, -0.3])


def test_repetitions_are_punished_up_to_the_cap() -> None:
    a, b = ("search", "a"), ("search", "b")
    calls = [a, b, a, b, a, b]
    assert repetition_penalty(Repetition(weight=-0.5, window=2), calls) == pytest.approx(-2.0)
    assert repetition_penalty(Repetition(weight=-0.5, window=2, cap=3), calls) == pytest.approx(-1.5)
    assert repetition_penalty(Repetition(weight=-0.5, window=2, cap=9), calls) == pytest.approx(-2.0)
    assert repetition_penalty(Repetition(weight=-0.5, window=1, cap=3), calls) == 0.0


def test_an_episode_whose_steps_nobody_verified_has_no_process_credit() -> None:
    assert process_score([]) == process_score(_steps(True, True)) == 0.0
    assert process_score(_steps(True, True, True, verdicts=(1.0, None, 0.0))) == 0.5


def test_whoever_reads_the_outcome_alone_asks_no_judge_about_the_steps() -> None:
    reward = Reward(outcome_by="judge", steps_by="judge", rubric=("a",), format=0.1)
    assert outcome_alone(reward) == Reward(outcome_by="judge", format=0.1)
