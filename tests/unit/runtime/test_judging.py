"""Promises of judged episodes: the judge's word replaces the world's where the reward says so, and is asked for once."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from polymath.runtime.engines.endpoint import Unreadable
from polymath.runtime.engines.judge import JudgeClient
from polymath.runtime.judging import LanguageModelJudge, Transcript, Verdict, VerdictStore
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import UserError
from polymath.specs.reward import Reward

WORLD = make_world("science", {})
TASK = WORLD.tasks("train", 1, 0)[0]
OUTCOME = Reward(outcome_by="judge")
PROCESS = Reward(steps_by="judge", rubric=("one", "two", "three", "four"))


class ScriptedClient(JudgeClient):
    """Answers from a function of what it is shown, and remembers it."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.model = "scripted"
        self.seen: list[dict[str, Any]] = []
        self._answer = answer

    def ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[Any], Any]) -> Any:
        shown = json.loads(messages[1]["content"])
        self.seen.append(shown)
        return read(self._answer(shown))


def _transcript(reward: Reward, answer: str | None = "9 kg", said: str = "search") -> Transcript:
    messages = [*WORLD.start(TASK).opening(), {"role": "assistant", "content": said}]
    return Transcript(task=TASK, world=WORLD, reward=reward, messages=messages, answer=answer)


def _judge(folder: Path, client: JudgeClient) -> LanguageModelJudge:
    return LanguageModelJudge(client, VerdictStore(folder, 0))


def test_an_answer_is_compared_with_the_oracle_s_by_the_judge(tmp_path: Path) -> None:
    client = ScriptedClient(lambda shown: {"correct": shown["answer"] in shown["reference"]})
    right = WORLD.demonstrator(TASK, seed=0, habit_rate=0.0, slip_rate=0.0)
    call = right.next([])
    reference = right.next(WORLD.start(TASK).act(call))["content"]
    found = _judge(tmp_path, client).verdicts([_transcript(OUTCOME, reference), _transcript(OUTCOME, "none of it")])
    assert found == [Verdict(outcome=1.0), Verdict(outcome=0.0)]
    assert {shown["reference"] for shown in client.seen} == {reference}
    assert client.seen[0]["task"] == WORLD.start(TASK).opening()


def test_process_is_the_share_of_the_rubric_that_holds(tmp_path: Path) -> None:
    client = ScriptedClient(lambda shown: {"satisfied": [item in ("one", "three", "four") for item in shown["rubric"]]})
    assert _judge(tmp_path, client).verdicts([_transcript(PROCESS)]) == [Verdict(process=0.75)]


def test_a_cut_off_episode_is_wrong_without_asking_and_a_world_s_reward_is_not_judged(tmp_path: Path) -> None:
    client = ScriptedClient(lambda shown: {"correct": True})
    assert _judge(tmp_path, client).verdicts([_transcript(OUTCOME, None), _transcript(Reward())]) == [
        Verdict(outcome=0.0),
        Verdict(),
    ]
    assert not client.seen


def test_a_question_is_asked_once_and_a_resumed_run_does_not_ask_again(tmp_path: Path) -> None:
    client = ScriptedClient(lambda shown: {"correct": True})
    _judge(tmp_path, client).verdicts([_transcript(OUTCOME), _transcript(OUTCOME)])
    assert len(client.seen) == 1

    with (tmp_path / "0.jsonl").open("a") as stream:
        stream.write('\n{"question": "half a l')  # the run was killed while it wrote
    again = ScriptedClient(lambda shown: {"correct": False})
    assert _judge(tmp_path, again).verdicts([_transcript(OUTCOME)]) == [Verdict(outcome=1.0)]
    assert not again.seen
    assert _judge(tmp_path, again).verdicts([_transcript(OUTCOME, "another")]) == [Verdict(outcome=0.0)]
    assert _judge(tmp_path, ScriptedClient(lambda shown: 1 / 0)).verdicts([_transcript(OUTCOME, "another")])


def test_verdicts_before_a_failure_are_kept(tmp_path: Path) -> None:
    def answer(shown: dict[str, Any]) -> Any:
        if shown["answer"] == "bad":
            raise UserError("no verdict", exit_code=6)
        return {"correct": True}

    judge = _judge(tmp_path, ScriptedClient(answer))
    judge.verdicts([_transcript(OUTCOME, "good")])
    with pytest.raises(UserError, match="no verdict"):
        judge.verdicts([_transcript(OUTCOME, "bad")])
    assert _judge(tmp_path, ScriptedClient(lambda shown: 1 / 0)).verdicts([_transcript(OUTCOME, "good")]) == [Verdict(outcome=1.0)]


@pytest.mark.parametrize(
    "said", [True, {"correct": 1}, {"correct": "true"}, {"correct": True, "why": "it is"}, {"satisfied": [True] * 4}, None]
)
def test_a_verdict_of_another_form_is_no_verdict(tmp_path: Path, said: Any) -> None:
    with pytest.raises(Unreadable):
        _judge(tmp_path, ScriptedClient(lambda shown: said)).verdicts([_transcript(OUTCOME)])


@pytest.mark.parametrize("said", [{"satisfied": [True] * 3}, {"satisfied": [1, 1, 1, 1]}, {"satisfied": "all"}, {"correct": True}])
def test_a_rubric_wants_one_answer_for_each_item(tmp_path: Path, said: Any) -> None:
    with pytest.raises(Unreadable):
        _judge(tmp_path, ScriptedClient(lambda shown: said)).verdicts([_transcript(PROCESS)])
