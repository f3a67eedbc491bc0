"""Real benchmarks played token by token: what a task brings of tools is what the policy sees, and the reference wins its reward."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines.protocol import Capabilities, Generation, SamplingSettings
from polymath.runtime.rollouts import RolloutRequest, collect
from polymath.runtime.worlds.registry import make_world
from polymath.specs.model import Limits, Model
from polymath.specs.reward import Reward
from test_real_worlds import DATA, settings

pytestmark = [pytest.mark.real_data, pytest.mark.skipif(not DATA.is_dir(), reason="there is no ../shared/data here")]
BYTES = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:bytes"))
LIMITS = Limits(turns=64, response_tokens=4096, context_tokens=131_072)


class ReferenceEngine:
    """Writes what was published, found by the prompt it is shown."""

    policy_version = 1
    capabilities = Capabilities(full_vocabulary_scores=False, expert_choices=False)

    def __init__(self, world: Any, renderer: Renderer, tasks: Sequence[Any]) -> None:
        self.turns: dict[tuple[int, ...], list[int]] = {}
        for task in tasks:
            own, episode = renderer.offering(task.tools), world.start(task)
            solver = world.demonstrator(task, seed=0, habit_rate=0.0, slip_rate=0.0)
            ids, observations = own.open(episode.opening()), []
            while not episode.done:
                turn = own.turn(solver.next(observations))
                self.turns[tuple(ids)] = turn
                observations = episode.act(own.parse(turn))
                ids = ids + turn + ([] if episode.done else own.extend(observations))

    def generate(self, prompts: Sequence[Sequence[int]], **_: Any) -> list[Generation]:
        turns = [self.turns[tuple(prompt)] for prompt in prompts]
        return [Generation(ids=tuple(turn), logprobs=(0.0,) * len(turn), stopped=True) for turn in turns]


@pytest.mark.parametrize("concurrent", [False, True])
@pytest.mark.parametrize("name", ["gsm8k", "bfcl", "bfcl_multi_turn"])
def test_the_reference_is_played_through_the_tokenizer_and_wins(name: str, concurrent: bool) -> None:
    world = make_world(name, settings(name))
    tasks = world.tasks("train", 4, 1)
    renderer = Renderer(BYTES, world.tools)
    requests = [RolloutRequest(domain=name, task=task, limits=LIMITS, reward=Reward(outcome=1.0), group=0) for task in tasks]
    engine: Any = ReferenceEngine(world, renderer, tasks)
    engine.capabilities = replace(engine.capabilities, concurrent=concurrent)
    played = collect(engine, {name: renderer}, {name: world}, requests, SamplingSettings(temperature=1.0, top_p=1.0), seed=0)
    for task, one in zip(tasks, played, strict=True):
        assert (one.status, one.outcome, one.reward) == ("COMPLETED", 1.0, 1.0)
        text = BYTES.decode(list(one.ids))
        assert all(tool["function"]["name"] in text for tool in task.tools or ())
        written = BYTES.decode([token for token, own in zip(one.ids, one.written, strict=True) if own])
        for asked in task.payload.get("turns", ()):  # what the user says is context
            assert asked in text and asked not in written
        assert one.turns == 1 if name != "bfcl_multi_turn" else one.turns > len(task.payload["turns"])
