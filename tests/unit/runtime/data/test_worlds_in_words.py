"""The built-in worlds at their tiny settings, in the tiny tokenizer's words: nothing unknown, every act read back as it was."""

import json
from typing import Any

import pytest
from polymath.runtime.data.renderer import Renderer
from polymath.runtime.data.tokenizers import BUILTIN_FOLDERS, load_tokenizer_folder
from polymath.runtime.worlds.registry import make_world

WORDS = load_tokenizer_folder(BUILTIN_FOLDERS["builtin:tiny-words"], "builtin:tiny-words")
WORLDS = ("search", "engineering", "science", "instructions", "tools", "scientific_tools", "trail", "ledger")


def acts(message: dict[str, Any]) -> list[Any]:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return [(message["content"] or "").split(), *((call["name"], json.loads(call["arguments"])) for call in calls)]


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("habit_rate", "slip_rate"), [(0.0, 0.0), (0.65, 0.3)])
def test_an_episode_has_no_unknown_word_and_every_act_is_read_back(name: str, habit_rate: float, slip_rate: float) -> None:
    world = make_world(name, {})
    renderer = Renderer(WORDS, world.tools)
    for number, task in enumerate(world.tasks("train", 60, seed=1)):
        episode = world.start(task)
        solver = world.demonstrator(task, seed=number, habit_rate=habit_rate, slip_rate=slip_rate)
        messages = list(episode.opening())
        ids = renderer.open(messages)
        observations: list[Any] = []
        while not episode.done and len(episode.steps) < 12:
            message = solver.next(observations)
            written = renderer.turn(message)
            assert acts(renderer.parse(written)) == acts(message)
            assert not WORDS.invalid_ids & set(written)
            observations = episode.act(message)
            messages += [message, *observations]
            ids += written + (renderer.extend(observations) if observations else [])
        assert WORDS.hf.unk_token_id not in ids
        whole = renderer.render(messages).ids
        assert list(whole) == ids[: len(whole)]
        assert len(ids) <= 128
