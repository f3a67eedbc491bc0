"""What every built-in world promises, and what each of them promises for itself."""

import json
from typing import Any

import pytest
from polymath.runtime.knowledge.generators.registry import GENERATORS
from polymath.runtime.knowledge.records import TrajectoryRecord
from polymath.runtime.worlds.base import ERROR, GraphWorld, is_heldout
from polymath.runtime.worlds.demonstrations import demonstrate
from polymath.runtime.worlds.protocol import WorldError
from polymath.runtime.worlds.registry import CLASSES, make_world
from polymath.runtime.worlds.vocabulary import tiny_words
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.worlds import BUILTIN_WORLDS, DATA_WORLDS, DRAWN_WORLDS

every_world = pytest.mark.parametrize("name", sorted(DRAWN_WORLDS))

LARGER: dict[str, dict[str, Any]] = {
    "search": {"entities": 300, "relations": 14, "hops": 4, "results": 3, "page_facts": 5, "corpus_seed": 3},
    "engineering": {"operations": 8, "modulus": 97, "length": 5, "names": 60, "examples": 3, "hidden_tests": 4, "trace": False},
    "science": {"formulas": 3, "largest": 100_000, "modulus": 0},
    "instructions": {"words": 400, "fewest": 8, "most": 20, "required": 5},
    "tools": {"items": 60, "places": 12, "objects": 5},
    "scientific_tools": {"elements": 54, "terms": 4, "decimals": 3, "largest": 1_000_000, "modulus": 0},
    "trail": {"horizon": 12, "wood": 40, "map_seed": 2},
    "ledger": {"horizon": 12, "unit": 7, "book_seed": 2},
}


def world_of(name: str, settings: dict[str, Any] | None = None) -> GraphWorld:
    world = make_world(name, settings or {})
    assert isinstance(world, GraphWorld)
    return world


def words_of(record: TrajectoryRecord) -> set[str]:
    words: set[str] = set()
    for message in record.messages:
        words |= set(message["content"].split())
        for call in message.get("tool_calls", []):
            words.add(call["function"]["name"])
            for value in json.loads(call["function"]["arguments"]).values():
                words |= {str(word) for word in (value if isinstance(value, list) else [value])}
    return words


def call(name: str, arguments: Any, identity: str = "call_1") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": identity, "type": "function", "function": function}]}


def test_the_language_and_the_registry_know_the_same_worlds() -> None:
    assert {*CLASSES} == {*DRAWN_WORLDS, *DATA_WORLDS}
    assert {*CLASSES, *GENERATORS} == set(BUILTIN_WORLDS)


@every_world
def test_there_are_a_thousand_heldout_tasks_and_three_thousand_to_train_on(name: str) -> None:
    world = world_of(name)
    train, heldout = world.tasks("train", 3000, 1), world.tasks("heldout", 1000, 1)
    assert len({task.key for task in train}) == 3000
    assert len({task.key for task in heldout}) == 1000
    assert not {task.key for task in train} & {task.key for task in heldout}
    assert all(is_heldout(name, task.key) for task in heldout)
    assert not any(is_heldout(name, task.key) for task in train)


@every_world
def test_the_oracle_solves_every_task(name: str) -> None:
    world = world_of(name)
    for task in [*world.tasks("train", 500, 2), *world.tasks("heldout", 500, 2)]:
        record = demonstrate(world, task, 0, 0.0, 0.0)
        assert record.reward == 1.0, record
        assert all(step.verdict in (1.0, None) for step in record.steps)
        assert sum(message["role"] == "assistant" for message in record.messages) <= 5


@pytest.mark.parametrize("name", ["science", "search", "engineering", "instructions", "scientific_tools"])
def test_a_demonstration_without_tools_is_the_oracle_s_answer_at_once(name: str) -> None:
    world = world_of(name)
    for task in world.tasks("train", 50, 2):
        whole, direct = demonstrate(world, task, 0, 0.0, 0.0), demonstrate(world, task, 0, 0.0, 0.0, tools=False)
        assert direct.messages == (whole.messages[0], whole.messages[-1])
        assert direct.reward == 1.0 and direct.tools == () and len(direct.steps) == 1


def test_a_world_that_wants_to_see_the_calls_has_no_demonstration_without_them() -> None:
    world = world_of("tools")
    with pytest.raises(WorldError, match="world `tools` cannot be solved without calls"):
        for task in world.tasks("train", 20, 2):
            demonstrate(world, task, 0, 0.0, 0.0, tools=False)


@every_world
def test_the_habit_spoils_the_hard_half_and_nothing_else(name: str) -> None:
    world = world_of(name)
    tasks = world.tasks("heldout", 600, 3)
    for task in tasks:
        record = demonstrate(world, task, 0, 1.0, 0.0)
        assert record.reward == float(not world.is_hard(task.payload)), record
    assert 0.4 < sum(world.is_hard(task.payload) for task in tasks) / len(tasks) < 0.6


@every_world
def test_one_seed_gives_one_demonstration(name: str) -> None:
    def records(seed: int) -> list[str]:
        world = world_of(name)
        return [demonstrate(world, task, seed, 0.65, 0.08).line() for task in world.tasks("train", 50, seed)]

    assert records(5) == records(5)
    assert records(5) != records(6)


@every_world
def test_a_task_survives_json(name: str) -> None:
    world = world_of(name)
    task = world.tasks("train", 1, 4)[0]
    assert json.loads(json.dumps(task.payload)) == task.payload


@every_world
def test_the_vocabulary_holds_every_word_of_imperfect_demonstrations(name: str) -> None:
    world, vocabulary = world_of(name), set(tiny_words())
    for task in [*world.tasks("train", 1000, 7), *world.tasks("heldout", 500, 7)]:
        assert words_of(demonstrate(world, task, 3, 0.65, 0.5)) <= vocabulary


def test_the_vocabulary_is_sorted_and_has_every_number_once() -> None:
    words = tiny_words()
    assert words == sorted(set(words))
    assert {str(number) for number in range(100)} <= set(words)
    assert not any(" " in word for word in words)


@every_world
def test_a_demonstrator_that_always_slips_still_ends(name: str) -> None:
    world = world_of(name)
    for task in world.tasks("train", 100, 8):
        assert demonstrate(world, task, 0, 1.0, 1.0).reward in (0.0, 1.0)


BAD_CALLS = [
    call("no_such_tool", {}),
    call("calculate", "{not json"),
    call("calculate", "[" * 100_000),
    call("calculate", [1, "+", 2]),
    call("calculate", {"a": 1, "operator": "+"}),
    call("calculate", {"a": 1, "operator": "+", "b": 2, "c": 3}),
    call("calculate", {"a": "ada", "operator": "+", "b": 2}),
    call("calculate", {"a": 1, "operator": "^", "b": 2}),
    call("calculate", {"a": 1, "operator": "/", "b": 0}),
    call("calculate", '{"a": NaN, "operator": "+", "b": Infinity}'),
    call("calculate", {"a": 10**400, "operator": "*", "b": 2}),
    call("calculate", {"a": None, "operator": "+", "b": True}),
    call("search", {"query": []}),
    call("search", {"query": [{}]}),
    call("open", {"page": 10**6}),
    call("open", {"page": "ada"}),
    call("open", {"page": 1.5}),
    call("run", {"program": []}),
    call("run", {"program": ["launch"]}),
    call("run", {"program": ["double"] * 1000}),
    call("move", {"item": "moon", "place": "red"}),
    call("add", {"item": "pen", "place": "moon"}),
    call("remove", {"item": []}),
    call("molar_mass", {"element": "kryptonite"}),
    {"role": "assistant", "content": "", "tool_calls": [{}]},
    {"role": "assistant", "content": "", "tool_calls": [None]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": ["x"], "arguments": None}}]},
]


@every_world
@pytest.mark.parametrize("message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_a_call_that_makes_no_sense_is_an_observation(name: str, message: dict[str, Any]) -> None:
    world = world_of(name)
    episode = world.start(world.tasks("train", 1, 0)[0])
    observations = episode.act(message)
    assert [(one["role"], one["content"]) for one in observations] == [("tool", ERROR)]
    assert not episode.steps[-1].readable
    assert not episode.done and episode.outcome() == 0.0


@every_world
@pytest.mark.parametrize("content", ["", None, "nonsense", "<call> open", "\x00", "1e999 kg", ["done"]])
def test_a_wrong_answer_ends_the_episode_without_success(name: str, content: Any) -> None:
    world = world_of(name)
    episode = world.start(world.tasks("train", 1, 0)[0])
    assert episode.act({"role": "assistant", "content": content}) == []
    assert episode.done and episode.outcome() == 0.0
    assert episode.act({"role": "assistant", "content": "done"}) == []


@every_world
def test_every_tool_is_a_proper_function_schema(name: str) -> None:
    for tool in world_of(name).tools:
        function = tool["function"]
        assert tool["type"] == "function" and function["description"]
        assert list(function["parameters"]["properties"]) == function["parameters"]["required"]
        kinds = [schema["type"] for schema in function["parameters"]["properties"].values()]
        assert "array" not in kinds[:-1], "only the last argument may be a list, or a compact template cannot write the call"


@every_world
def test_records_hold_state_action_observation_and_verdict_of_every_turn(name: str) -> None:
    world = world_of(name)
    record = demonstrate(world, world.tasks("train", 1, 0)[0], 0, 0.0, 0.0)
    assert [step.message for step in record.steps] == [
        place for place, one in enumerate(record.messages) if one["role"] == "assistant"
    ]
    seen = [step.observation for step in record.steps[:-1]]
    assert seen == [place for place, one in enumerate(record.messages) if one["role"] == "tool"]
    assert record.steps[-1].observation is None
    assert record.reward == 1.0 and record.answer == record.messages[-1]["content"]
    assert record.task.instruction == record.messages[0]["content"]


@every_world
def test_too_few_tasks_are_an_error_that_says_how_many_there_are(name: str) -> None:
    with pytest.raises(WorldError, match=rf"`{name}` has \d+ distinct heldout tasks"):
        world_of(name).tasks("heldout", 1_000_000, 0)


@every_world
def test_larger_settings_make_harder_tasks_that_the_oracle_still_solves(name: str) -> None:
    world = world_of(name, LARGER[name])
    longer = [demonstrate(world, task, 0, 0.0, 0.0) for task in world.tasks("train", 200, 0)]
    assert all(record.reward == 1.0 for record in longer)
    for task in world.tasks("heldout", 200, 0):
        assert demonstrate(world, task, 1, 0.65, 0.2).reward in (0.0, 1.0)
    tiny = [demonstrate(world_of(name), task, 0, 0.0, 0.0) for task in world_of(name).tasks("train", 200, 0)]
    assert sum(len(json.dumps(list(one.messages))) for one in longer) > sum(len(json.dumps(list(one.messages))) for one in tiny)


def test_an_unknown_world_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as mistake:
        make_world("serach", {})
    assert mistake.value.exit_code == ExitCode.SPEC
    assert mistake.value.fix == "did you mean `search`?"


@pytest.mark.parametrize("settings", [{"hopps": 3}, {"hops": "three"}, {"hops": 0}])
def test_settings_that_a_world_does_not_take_are_a_mistake_in_the_spec(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError) as mistake:
        make_world("search", settings)
    assert mistake.value.exit_code == ExitCode.SPEC
    assert "search" in mistake.value.message


def test_numbers_may_be_written_as_text() -> None:
    world = world_of("science")
    episode = world.start(world.tasks("train", 1, 0)[0])
    assert episode.act(call("calculate", {"a": "12", "operator": "*", "b": 3}))[0]["content"] == "36"
    assert episode.steps[-1].readable


def test_several_calls_in_one_message_are_all_answered() -> None:
    world = world_of("science")
    episode = world.start(world.tasks("train", 1, 0)[0])
    both = call("calculate", {"a": 1, "operator": "+", "b": 1}, "first")
    both["tool_calls"] += call("calculate", {"a": 2, "operator": "+", "b": 2}, "second")["tool_calls"]
    assert [(one["tool_call_id"], one["content"]) for one in episode.act(both)] == [("first", "2"), ("second", "4")]


def test_a_search_for_words_in_the_wrong_order_finds_pages_that_hold_some() -> None:
    world = world_of("search", {"results": 5})
    episode = world.start(world.tasks("train", 1, 0)[0])
    assert len(episode.act(call("search", {"query": ["ada", "boss"]}))[0]["content"].split()) == 5
    assert episode.act(call("search", {"query": ["zebra"]}))[0]["content"] == "none"
    assert episode.act(call("search", {"query": ['"', "*", "OR", "NEAR("]}))[0]["content"] == "none"


def test_a_python_program_is_judged_in_the_sandbox() -> None:
    world = world_of("engineering", {"language": "python", "operations": 6, "length": 3, "examples": 2, "hidden_tests": 2})
    task = next(task for task in world.tasks("heldout", 20, 0) if world.is_hard(task.payload))
    assert demonstrate(world, task, 0, 0.0, 0.0).reward == 1.0
    assert demonstrate(world, task, 0, 1.0, 0.0).reward == 0.0
    slipped = demonstrate(world, task, 0, 0.0, 1.0)
    assert slipped.reward in (0.0, 1.0)
    episode = world.start(task)
    assert "SyntaxError" in episode.act(call("run", {"program": "def"}))[0]["content"]
    assert episode.act({"role": "assistant", "content": "import os; os._exit(0)"}) == []
    assert episode.outcome() == 0.0
