"""What the report says of single generators: the tree and its tools, rows that nobody sees, masked walks, science in two ways."""

import json
import random
import statistics
from typing import Any

import pytest
from polymath.runtime.knowledge.generators.base import GeneratorEpisode, ScriptedSolver
from polymath.runtime.knowledge.generators.engineering_tree import source
from polymath.runtime.knowledge.generators.reference_programs import linear
from polymath.runtime.knowledge.generators.registry import make_generator, scratch_graph
from polymath.runtime.knowledge.importers import Link, Page, add_pages
from polymath.runtime.knowledge.player import Bounds, Player
from polymath.runtime.worlds.base import Call, message_of

OF_THE_REPORT = {
    *("write_full_code", "patch_code", "execute_code", "execute_bash", "list_nodes", "select_node", "invalidate_node"),
    *("update_answer", "get_current_answer", "write_notes", "read_notes", "analyze"),
}

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def drawn(generator: Any, count: int, seed: int = 3) -> list[Any]:
    rng, tasks = random.Random(seed), []
    while len(tasks) < count:
        if (task := generator.draw(rng)) is not None:
            tasks.append(task)
    return tasks


class Bench:
    """An episode that is acted in call by call."""

    def __init__(self, generator: Any, task: Any) -> None:
        self.episode: GeneratorEpisode = generator.start_record(task)

    def call(self, name: str, **arguments: Any) -> str:
        (shown,) = self.episode.act(message_of(Call(name, arguments), 1))
        return str(shown["content"])


@pytest.fixture(scope="module")
def tree() -> tuple[Any, Any]:
    generator = make_generator("engineering_tree", {})
    return generator, drawn(generator, 1)[0]


def test_the_twelve_tools_work_on_one_tree(tree: tuple[Any, Any]) -> None:
    generator, task = tree
    assert {one["function"]["name"] for one in generator.tools} == OF_THE_REPORT
    bench = Bench(generator, task)
    assert bench.call("list_nodes") == "no node yet" and bench.call("get_current_answer") == "no answer yet"
    assert "target" in bench.call("analyze", question="What is in the data?")
    assert bench.call("write_full_code", code="print('first')") == "node 1"
    assert bench.call("execute_code", node=1).startswith("no score") and "first" in bench.call("analyze", question="What came out?")
    assert bench.call("patch_code", node=1, old="first", new="second") == "node 2"
    assert "stands there 0 times" in bench.call("patch_code", node=1, old="nothing like it", new="x")
    assert bench.call("invalidate_node", node=1, reason="no score") == "node 1 is invalid"
    assert "node 1 is invalid" in bench.call("update_answer", node=1)
    assert bench.call("select_node", node=2) == "print('second')"
    assert "there is no node 9" in bench.call("select_node", node=9)
    assert bench.call("write_full_code", code="pass") == "node 3"
    assert bench.call("list_nodes").splitlines()[1:] == ["node 2 from 1: not run", "node 3 from 2: not run"]
    assert bench.call("update_answer", node=3) == "the answer is node 3" and bench.call("get_current_answer") == "node 3"
    assert bench.call("read_notes") == "no notes yet" and bench.call("write_notes", text="a") == "noted"
    assert bench.call("read_notes") == "a" and bench.call("execute_bash", command="echo $((6 * 7))").strip() == "42"


def test_a_program_is_graded_by_rows_whose_labels_it_never_sees(tree: tuple[Any, Any]) -> None:
    """One that knows the public labels by heart is right in all that it is shown, and refused."""
    generator, task = tree
    public = generator._table(json.dumps(task.payload["table"]))["public"]
    known = {str(list(row)): label for row, label in public}
    code = f"{source(linear)}\nknown = {known!r}\nguess = predict\ndef predict(train, rows):\n"
    code += "    return [known.get(str(list(row)), one) for row, one in zip(rows, guess(train, rows))]\n"
    bench = Bench(generator, task)
    bench.call("write_full_code", code=code)
    assert bench.call("execute_code", node=1).startswith("public R2 1.0000")
    bench.call("update_answer", node=1)
    bench.episode.act({"role": "assistant", "content": "done"})
    assert bench.episode.done and bench.episode.outcome() == 0.0


def test_walks_mask_names_end_at_the_last_page_and_have_the_mean_length_that_is_set() -> None:
    means, store = {}, make_generator("search_walks", {"pages": 100, "page_words": 120}).store
    for wanted in (1_500, 4_500):
        generator = make_generator("search_walks", {"mean_tokens": wanted}, store)
        tokens = []
        for task in drawn(generator, 16):
            names = [node.name for node in generator.region(task)]
            assert not any(name in task.instruction for name in (*names, task.target)) and "(...)" in task.instruction
            assert task.target not in names and len(names) == len(task.payload["cues"])
            record = Player(Bounds(turns=200)).play(
                generator.start_record(task), task, generator.tools, ScriptedSolver(generator, task, seed=0)
            )
            assert record.answer == task.target and record.reward == 1.0
            tokens.append(record.provenance["tokens"])
        means[wanted] = statistics.mean(tokens)
    assert all(0.7 * wanted < mean < 1.3 * wanted for wanted, mean in means.items()), means


def test_walks_turn_back_from_dead_ends_and_leave_out_what_the_report_leaves_out() -> None:
    ring = ["Alder", "Bramble", "Cedar", "Dogwood", "Elder", "Fennel", "Gorse", "Hazel", "Ivy", "Juniper"]
    texts = {
        "Empty Page": (" ", []),
        "List of farms": ("All the farms of the country stand in this one long list.", ring[:2]),
        "Farm (disambiguation)": ("A farm is one of several things that are told apart here.", ring[:2]),
        "Crossing": ("Crossing may refer to one of these two farms of the country.", ring[:2]),
        "Lonely Page": ("Nothing leads away from this page about a very old stone.", []),
    }
    dropped = list(texts)
    for place, name in enumerate(ring):
        nearly, blind = f"{name}s", f"Wall of {name}"
        onward = ring[(place + 1) % len(ring)]
        texts[name] = f"The {name} farm has {place + 3} barns of stone beside its old orchard.", [onward, nearly, blind, *dropped]
        texts[nearly] = f"There are {place + 60} farms of this kind in all of the country.", [onward]
        texts[blind] = f"A lane of {place + 30} steps ends here before a wall of clay.", [name]
    store = scratch_graph()
    add_pages(store, [page(title, *of_page) for title, of_page in texts.items()], "here")
    generator = make_generator("search_walks", {"hops": 4, "fewest_links": 1}, store)
    walks = [[*(node.name for node in generator.region(task)), task.target] for task in drawn(generator, 60)]
    for walk in walks:
        assert set(walk[1:-1]) <= set(ring) and len(set(walk)) == len(walk), walk
        assert walk[-1] in ring or walk[-1].startswith("Wall of"), walk
    assert {len(walk) for walk in walks} == {5}, "a dead end before the last page is turned back from"


def page(title: str, text: str, targets: list[str]) -> Page:
    """With its links at the end, each after words of its own."""
    links = []
    for place, target in enumerate(targets):
        text += f" A lane numbered {ORDINALS[place]} leads to "
        links.append(Link(target=target, anchor=target, start=len(text)))
        text += f"{target}."
    return Page(title=title, text=text, links=links)


@pytest.mark.parametrize("tools", [True, False])
def test_science_is_asked_with_four_tools_or_with_its_sources_and_kept_only_where_the_number_is_right(tools: bool) -> None:
    generator = make_generator("science_rewrites", {"tools": tools})
    assert [one["function"]["name"] for one in generator.tools] == (["search", "visit", "scholar", "code"] if tools else [])
    for task in drawn(generator, 3):
        assert ("[1]" in task.instruction and "[2]" in task.instruction) is not tools
        number = float(task.target)
        assert generator.accepts(task, task.target) and generator.accepts(task, f"{number * 1.0001:.6g}")
        assert not generator.accepts(task, f"{number * 1.02:.5g}") and not generator.accepts(task, "")
