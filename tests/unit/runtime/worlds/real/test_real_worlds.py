"""Real benchmarks as worlds: every published answer is accepted, every mutated one refused. Wants ../shared/data."""

import json
import random
from pathlib import Path

import pytest
from polymath.runtime.worlds.bfcl.apis import APIS, DOCUMENTS
from polymath.runtime.worlds.bfcl.single import published_call
from polymath.runtime.worlds.demonstrations import demonstrate
from polymath.runtime.worlds.gsm8k import final_number
from polymath.runtime.worlds.protocol import WorldError
from polymath.runtime.worlds.registry import make_world
from polymath.runtime.worlds.rows import FunctionCall, call_message

DATA = Path(__file__).parents[6] / "shared/data"
BFCL = DATA / "bfcl"
pytestmark = [pytest.mark.real_data, pytest.mark.skipif(not DATA.is_dir(), reason="there is no ../shared/data here")]


def settings(name):
    return {
        "gsm8k": {"data": f"file://{DATA}/gsm8k/train.jsonl"},
        "bfcl": {"data": f"{BFCL}/BFCL_v4_simple_python.jsonl", "answers": f"{BFCL}/BFCL_v4_simple_python.answers.jsonl"},
        "bfcl_multi_turn": {
            "data": f"{BFCL}/BFCL_v4_multi_turn_base.jsonl",
            "answers": f"{BFCL}/BFCL_v4_multi_turn_base.answers.jsonl",
            "documents": f"{BFCL}/func_doc",
        },
        "ifbench": {"data": f"{DATA}/ifbench/IFBench_test.jsonl"},
    }[name]


@pytest.fixture(scope="module", params=("gsm8k", "bfcl", "bfcl_multi_turn"))
def world(request):
    return make_world(request.param, settings(request.param))


def outcome(world, task, messages):
    episode = world.start(task)
    for message in messages:
        episode.act(message)
    return episode.outcome()


def reference(world, task):
    solver = world.demonstrator(task, seed=0, habit_rate=0.0, slip_rate=0.0)
    return list(solver.messages)


def test_every_published_answer_is_accepted(world):
    rows = {"gsm8k": 4000, "bfcl": 300, "bfcl_multi_turn": 150}[world.name]
    assert len(world.all_tasks) == rows
    assert all(outcome(world, task, reference(world, task)) == 1.0 for task in world.all_tasks)


def test_the_split_is_the_same_whatever_the_seed_and_nothing_is_in_both(world):
    heldout = {task.key for task in world.all_tasks if world._is_in("heldout", task)}
    count = len(heldout)
    assert {task.key for task in world.tasks("heldout", count, 1)} == heldout
    assert not heldout & {task.key for task in world.tasks("train", len(world.all_tasks) - count, 2)}
    with pytest.raises(WorldError, match=f"has {count} heldout tasks"):
        world.tasks("heldout", count + 1, 1)


def test_every_answer_with_another_number_is_refused():
    world = make_world("gsm8k", settings("gsm8k"))
    for task in world.all_tasks:
        answer = task.payload["answer"]
        right = final_number(answer)
        for wrong in (right + 1, right * 10 + 3, -right - 1):
            said = answer.rpartition("####")[0] + f"#### {wrong}"
            assert outcome(world, task, [{"role": "assistant", "content": said}]) == 0.0
        assert outcome(world, task, [{"role": "assistant", "content": "I do not know."}]) == 0.0
        assert outcome(world, task, []) == 0.0


def test_a_number_is_read_as_people_write_it():
    for text in ("#### 1,234", "so it is $1,234.00.", "\\boxed{1234} in all", "first 7, then 1234"):
        assert final_number(text) == 1234
    assert final_number("no number here") is None
    assert final_number("#### none, though I said 12 before") is None


def mutated_arguments(call, allowed):
    """Calls that differ from the published one in one thing that its answer does not allow."""
    for name, value in call.arguments.items():
        rest = {key: other for key, other in call.arguments.items() if key != name}
        yield rest
        wrong = value + 1_000_003 if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        if isinstance(value, bool):
            wrong = None if (not value) in allowed[name] else not value
        elif isinstance(value, str):
            wrong = value + " and more"
        elif isinstance(value, list):
            wrong = [*value, *value, "more"]
        if wrong is not None:
            yield {**call.arguments, name: wrong}
    yield {**call.arguments, "no_such_argument": 1}


def test_every_mutated_single_call_is_refused():
    world = make_world("bfcl", settings("bfcl"))
    mutations = 0
    for task in world.all_tasks:
        call = published_call(task)
        right = call_message([call])
        for arguments in mutated_arguments(call, task.payload["allowed"]):
            assert outcome(world, task, [call_message([FunctionCall(call.name, arguments)])]) == 0.0, (task.key, arguments)
            mutations += 1
        for message in (
            call_message([FunctionCall(f"{call.name}_", call.arguments)]),
            call_message([call, call]),
            {"role": "assistant", "content": json.dumps(call.arguments)},
            {"role": "assistant", "tool_calls": [{"function": {"name": call.name, "arguments": "{"}}]},
            {"role": "assistant", "tool_calls": ["nonsense"]},
        ):
            assert outcome(world, task, [message]) == 0.0
            mutations += 1
        assert outcome(world, task, [right]) == 1.0
    assert mutations > 3_000


def test_every_function_of_the_eight_services_is_there_with_its_parameters():
    import inspect

    names = []
    for api, file in DOCUMENTS.items():
        for line in (BFCL / "func_doc" / file).read_text().splitlines():
            document = json.loads(line)
            function = getattr(APIS[api], document["name"])
            assert set(list(inspect.signature(function).parameters)[1:]) == set(document["parameters"]["properties"])
            names.append(document["name"])
    assert len(names) == len(set(names)) == 128


def test_no_reference_call_is_refused_by_its_service():
    world = make_world("bfcl_multi_turn", settings("bfcl_multi_turn"))
    errors = []
    for task in world.all_tasks:
        record = demonstrate(world, task, seed=0, habit_rate=0.0, slip_rate=0.0)
        said = [message["content"] for message in record.messages if message["role"] == "tool"]
        errors += [text for text in said if '"error"' in text]
        assert record.tools == tuple(task.tools) and record.reward == 1.0
    assert not errors


def test_every_dialogue_with_a_call_left_out_or_spoiled_is_refused():
    """A change that neither the state nor the answers show is no mutation: there are few, and they are counted."""
    world = make_world("bfcl_multi_turn", settings("bfcl_multi_turn"))
    refused = equal = 0
    for task in world.all_tasks:
        messages = reference(world, task)
        for place, message in enumerate(messages):
            if not message.get("tool_calls"):
                continue
            assert outcome(world, task, messages[:place] + messages[place + 1 :]) == 0.0, (task.key, message)
            refused += 1
            function = message["tool_calls"][0]["function"]
            for name, value in json.loads(function["arguments"]).items():
                wrong = value + 1 if isinstance(value, (int, float)) and not isinstance(value, bool) else f"{value}x"
                arguments = {**json.loads(function["arguments"]), name: wrong}
                spoiled = [*messages[:place], call_message([FunctionCall(function["name"], arguments)]), *messages[place + 1 :]]
                if outcome(world, task, spoiled):
                    equal += 1
                else:
                    refused += 1
        assert outcome(world, task, messages[:-1]) == 0.0  # the user was never told
        assert outcome(world, task, [{"role": "assistant", "content": "Done."}] * len(task.payload["turns"])) == 0.0
    # One mile further is as feasible, one line more of a short file is the same file.
    assert refused > 1_900 and equal <= 24, (refused, equal)


def test_detours_are_free_and_nonsense_is_an_observation():
    world = make_world("bfcl_multi_turn", settings("bfcl_multi_turn"))
    rng = random.Random(0)
    for task in rng.sample(world.all_tasks, 30):
        episode = world.start(task)
        noise = [
            call_message([FunctionCall("no_such_function", {})]),
            call_message([FunctionCall("__init__", {"config": {}})]),
            call_message([FunctionCall("state", {})]),
            call_message([FunctionCall(task.tools[0]["function"]["name"], {"strange": [1]})]),
            {"role": "assistant", "tool_calls": [None, {"function": {"name": "cd", "arguments": "[1]"}}]},
        ]
        for message in [*noise, *reference(world, task)]:
            episode.act(message)
        assert episode.outcome() == 1.0
        assert all("error" in step.observation and not step.readable for step in episode.steps[:6])


def test_an_imperfect_demonstrator_is_refused_clearly(world):
    task = world.all_tasks[0]
    with pytest.raises(WorldError, match="without habits or slips"):
        world.demonstrator(task, seed=0, habit_rate=0.5, slip_rate=0.0)


def test_ifbench_has_all_its_prompts_and_no_demonstrations():
    world = make_world("ifbench", settings("ifbench"))
    assert len(world.tasks("heldout", 200, 0)) == 200
    with pytest.raises(WorldError, match="publishes no answers"):
        world.demonstrator(world.all_tasks[0], seed=0, habit_rate=0.0, slip_rate=0.0)
