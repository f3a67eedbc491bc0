"""Every generator: the oracle's work is accepted, planted defects are refused, and what a spec asks of a world holds."""

import json
import os
import random
from pathlib import Path

import pytest
from planted import DEFECTS, OF_TASKS, clean_tasks, planted, verdict
from polymath.runtime.knowledge.corpus import encyclopedia
from polymath.runtime.knowledge.generators.base import TaskGenerator
from polymath.runtime.knowledge.generators.programs import Programs
from polymath.runtime.knowledge.generators.registry import GENERATORS, make_generator
from polymath.runtime.knowledge.graph import GraphStore
from polymath.runtime.knowledge.importers import add_pages

COUNT = int(os.environ.get("POLYMATH_PLANTED", "12"))  # the figures of docs/numbers.md are of 1000
EXPECTED = {  # the check that must refuse a defect, whatever others refuse it too
    "shortcut": {"unambiguous"},
    "ambiguous": {"unambiguous"},
    "unreachable": {"checkable"},
    "unread evidence": {"consulted"},
    "lucky guess": {"consulted"},
}
every_generator = pytest.mark.parametrize("name", sorted(GENERATORS))


@pytest.fixture(scope="module")
def generators() -> dict[str, TaskGenerator]:
    return {}


def generator_of(name: str, made: dict[str, TaskGenerator]) -> TaskGenerator:
    if name not in made:
        made[name] = make_generator(name, {})
    return made[name]


@every_generator
def test_no_clean_task_is_refused(name: str, generators: dict[str, TaskGenerator]) -> None:
    generator = generator_of(name, generators)
    refused = {task.key: why for task in clean_tasks(generator, COUNT, 1) if (why := verdict(generator, task))}
    if refused:
        print(next(iter(refused.items())))
    print(f"{name} clean: {len(refused)} of {COUNT} refused")
    assert not refused


@every_generator
@pytest.mark.parametrize("defect", DEFECTS)
def test_every_planted_defect_is_refused(name: str, defect: str, generators: dict[str, TaskGenerator]) -> None:
    if (name, defect) == ("constraints", "lucky guess"):
        pytest.skip("a text that keeps every constraint is right, however it came about")
    generator, rng = generator_of(name, generators), random.Random(7)
    refused = count = 0
    seed = 2
    while count < COUNT:
        for task in clean_tasks(generator, min(COUNT, 50), seed):
            spoilt = planted(generator, task, defect, rng)
            if spoilt is None or count == COUNT:
                continue
            count += 1
            why = verdict(spoilt.generator, spoilt.task, spoilt.solver)
            assert EXPECTED[defect] & set(why), (why, spoilt.task)
            assert (spoilt.second is not None) == (defect == "ambiguous"), "a second answer makes it ambiguous"
            assert spoilt.second is None or not spoilt.generator.accepts(spoilt.task, spoilt.second)
            refused += bool(why)
        seed += 1
    print(f"{name} {defect}: {refused} of {count} refused")
    assert refused == count
    assert defect not in OF_TASKS or generator.fewest_steps >= 0


def test_walks_go_over_a_graph_of_the_user_s(tmp_path: Path) -> None:
    path = tmp_path / "wiki.sqlite"
    with GraphStore.create(path) as store:
        add_pages(store, encyclopedia(120, 60, 5), "mine")
        store.commit()
    content = path.read_bytes()
    generator = make_generator("search_walks", {"graph": str(path)})
    pages = {node.name for node in generator.store.nodes("evidence")}
    for task in generator.tasks("train", 4, 0):
        assert task.payload["target"] in pages and generator.start(task).outcome() == 0.0
    assert path.read_bytes() == content


@every_generator
def test_a_generator_is_a_world(name: str, generators: dict[str, TaskGenerator]) -> None:
    generator = generator_of(name, generators)
    train, heldout = generator.tasks("train", 6, 0), generator.tasks("heldout", 3, 0)
    assert not {task.key for task in train} & {task.key for task in heldout}
    assert [task.key for task in generator.tasks("train", 6, 0)] == [task.key for task in train]
    task = train[0]
    assert json.loads(json.dumps(task.payload)) == task.payload
    for rate, outcome in ((0.0, 1.0), (1.0, None)):
        episode, solver = generator.start(task), generator.demonstrator(task, seed=1, habit_rate=0.0, slip_rate=rate)
        observations = []
        for _ in range(60):
            observations = episode.act(solver.next(observations))
            if episode.done:
                break
        assert outcome is None or episode.outcome() == outcome
    assert (
        generator.start(task)
        .act({"role": "assistant", "content": None, "tool_calls": [{"function": {}}]})[0]["content"]
        .startswith("error")
    )


def test_a_program_runs_once_and_never_sees_what_another_left() -> None:
    programs = Programs(seconds=20.0, memory_mib=256, characters=200)
    count = "import os, uuid\nopen('left', 'a').write('x')\nprint(uuid.uuid4(), os.path.getsize('left'))"
    first = programs.output(count)
    assert programs.output(count) == first and first.endswith(" 1\n"), "kept"
    other = programs.output(f"{count}\n")
    assert other != first and other.endswith(" 1\n"), "another program runs, in a folder that is empty again"
