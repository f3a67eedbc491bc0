"""Branches of the engineering tree that were given up are not trained on; what stayed is, with all it came of. Real programs."""

import json
from typing import Any

import pytest
from planted import Replay, clean_tasks, played
from polymath.runtime.knowledge.generators.base import ScriptedSolver
from polymath.runtime.knowledge.generators.reference_programs import LAST_ONLY, PAIRS, PLAIN, linear, source
from polymath.runtime.knowledge.generators.registry import make_generator
from polymath.runtime.knowledge.records import TrajectoryRecord
from polymath.runtime.knowledge.trimming import trimmed
from polymath.runtime.worlds.base import Call, message_of

LOOK = Call("analyze", {"question": "What is in the data?"})
WRITE, RUN = Call("write_full_code", {"code": source(linear)}), "execute_code"


@pytest.fixture(scope="module")
def generator() -> Any:
    return make_generator("engineering_tree", {})


def patch(node: int, new: str) -> Call:
    return Call("patch_code", {"node": node, "old": PLAIN, "new": new})


def give_up(node: Any) -> Call:
    return Call("invalidate_node", {"node": node, "reason": "worse"})


def attempt(generator: Any, *calls: Call) -> TrajectoryRecord:
    """An episode in which these calls are carried out, as far as it goes, trimmed as self-play trims."""
    (task,) = clean_tasks(generator, 1, 3)
    messages = [message_of(call, number) for number, call in enumerate(calls, start=1)]
    return trimmed(generator, played(generator, task, Replay([*messages, {"role": "assistant", "content": "done"}])))


def shown(record: TrajectoryRecord) -> list[tuple[str, Any]]:
    """The calls that stayed, each with the node that it is about."""
    calls = [call["function"] for message in record.messages for call in message.get("tool_calls") or ()]
    return [(call["name"], json.loads(call["arguments"]).get("node")) for call in calls]


def test_a_branch_that_was_given_up_is_trimmed_and_the_rest_is_right_as_before(generator: Any) -> None:
    calls = (LOOK, WRITE, Call(RUN, {"node": 1}), patch(1, LAST_ONLY), Call(RUN, {"node": 2}), Call("select_node", {"node": 2}))
    record = attempt(generator, *calls, give_up(2), patch(1, PAIRS), Call(RUN, {"node": 3}), Call("update_answer", {"node": 3}))
    assert record.provenance["trimmed"] == 4 and record.reward == 1.0 and record.answer == "done"
    kept = [("analyze", None), ("write_full_code", None), (RUN, 1), ("patch_code", 1), (RUN, 3), ("update_answer", 3)]
    assert shown(record) == kept
    assert [step.observation is None or record.messages[step.observation]["role"] == "tool" for step in record.steps].count(
        False
    ) == 0


def test_what_a_kept_node_came_of_stays_though_it_was_given_up(generator: Any) -> None:
    """Node 3 is a patch of node 2; a record without node 2 would patch what nobody wrote."""
    commented = Call("patch_code", {"node": 1, "old": PLAIN, "new": f"{PLAIN}  # as they are"})
    mended = Call("patch_code", {"node": 2, "old": f"{PLAIN}  # as they are", "new": PAIRS})
    calls = (LOOK, WRITE, commented, Call(RUN, {"node": 2}), mended, give_up(2), Call(RUN, {"node": 3}))
    record = attempt(generator, *calls, Call("update_answer", {"node": 3}))
    assert "trimmed" not in record.provenance and record.reward == 1.0 and len(shown(record)) == 8


def test_a_whole_branch_goes_with_what_was_tried_below_it(generator: Any) -> None:
    below = Call("patch_code", {"node": 2, "old": LAST_ONLY, "new": f"{LAST_ONLY}  # again"})
    calls = (
        LOOK,
        WRITE,
        patch(1, LAST_ONLY),
        below,
        Call(RUN, {"node": 3}),
        Call("update_answer", {"node": 3}),
        give_up(3),
        give_up(2),
    )
    record = attempt(generator, *calls, patch(1, PAIRS), Call(RUN, {"node": 4}), Call("update_answer", {"node": 4}))
    assert (
        [call for call in shown(record) if call[1] in (2, 3)] == [] and record.provenance["trimmed"] == 6 and record.reward == 1.0
    )


def test_the_node_that_is_handed_in_stays_though_it_was_given_up(generator: Any) -> None:
    calls = (LOOK, WRITE, patch(1, PAIRS), Call(RUN, {"node": 2}), Call("update_answer", {"node": 2}), give_up(2))
    record = attempt(generator, *calls)
    assert "trimmed" not in record.provenance and record.reward == 1.0


@pytest.mark.parametrize("node", [None, "x", [2], 9, {"a": 1}])
def test_a_call_that_gives_up_no_node_trims_itself_alone(generator: Any, node: Any) -> None:
    record = attempt(
        generator, LOOK, WRITE, patch(1, PAIRS), give_up(node), Call(RUN, {"node": 2}), Call("update_answer", {"node": 2})
    )
    assert record.provenance["trimmed"] == 1 and record.reward == 1.0 and ("invalidate_node", node) not in shown(record)


def test_a_node_written_as_a_text_is_the_same_node(generator: Any) -> None:
    calls = (LOOK, WRITE, patch(1, LAST_ONLY), Call(RUN, {"node": "2"}), give_up("2"), patch(1, PAIRS), Call(RUN, {"node": 3}))
    record = attempt(generator, *calls, Call("update_answer", {"node": 3}))
    assert record.provenance["trimmed"] == 3 and record.reward == 1.0


def test_the_oracles_dead_ends_are_not_trained_on(generator: Any) -> None:
    """About half of its episodes try an idea that it gives up."""
    tried = []
    for seed, task in enumerate(clean_tasks(generator, 6, 5)):
        whole = played(generator, task, ScriptedSolver(generator, task, seed=seed))
        gave_up = "invalidate_node" in [name for name, _ in shown(whole)]
        record = trimmed(generator, whole)
        assert "invalidate_node" not in [name for name, _ in shown(record)] and record.reward == 1.0
        assert record.provenance.get("trimmed", 0) == (3 if gave_up else 0)
        tried.append(gave_up)
    assert any(tried) and not all(tried)
