"""The knowledge-action graph."""

import random

import pytest
from polymath.runtime.worlds.graph import Fact, KnowledgeActionGraph

CIRCLE = [Fact(subject=str(n), relation="next", value=str((n + 1) % 4)) for n in range(4)]


def test_a_walk_follows_facts_and_never_meets_a_value_twice() -> None:
    path = KnowledgeActionGraph(CIRCLE, (), {}).walk(random.Random(0), "1", 3)
    assert path is not None
    assert [fact.value for fact in path] == ["2", "3", "0"]


def test_a_walk_that_would_have_to_turn_back_is_none() -> None:
    assert KnowledgeActionGraph(CIRCLE, (), {}).walk(random.Random(0), "1", 4) is None


def test_a_fact_that_contradicts_another_is_refused() -> None:
    with pytest.raises(ValueError, match="0 next is both 1 and 3"):
        KnowledgeActionGraph([*CIRCLE, Fact(subject="0", relation="next", value="3")], (), {})
