"""Machine-learning engineering: a tree of executable nodes, graded by a split that never enters the sandbox with its labels.

A task is a table and a column to predict. Every version of the program is a node below the one it came from; it runs in the sandbox
on the training rows and the public rows, and its score is computed outside. The answer is a node, graded on private rows that
nothing in the episode shows. Branches that were given up are trimmed from what is trained on.
Source: Agents-A1 report (arXiv 2606.30616), engineering data; the tools are those of its table.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ....specs.generators import EngineeringTreeSettings
from ...worlds.base import Call, Unreadable
from ..graph import GraphStore, Node
from ..records import TaskRecord
from .base import Acts, Shown, TaskGenerator, tool
from .programs import Programs
from .reference_programs import LAST_ONLY, PAIRS, PLAIN, linear, mean, source

RUN_SECONDS, RUN_MIB = 20.0, 256
TRAIN, PUBLIC, PRIVATE = 60, 30, 60  # rows
MOST_CODE = 20_000  # characters of a program
SHOWN, MOST_OUTPUT = 1500, 16_384  # characters of an output: shown, and read at all
_NAMES = ["width", "depth", "heat", "flow", "load", "age", "slope", "grain", "pulse", "charge"]
_HARNESS = "\nTRAIN, ROWS = %s\nprint('PREDICTIONS', [float(one) for one in predict(TRAIN, ROWS)])\n"


@dataclass(slots=True)
class _Node:
    parent: int | None
    code: str
    score: float | None = None
    output: str = ""
    valid: bool = True


@dataclass(slots=True)
class _Tree:
    nodes: dict[int, _Node] = field(default_factory=dict)
    current: int | None = None
    answer: int | None = None
    notes: list[str] = field(default_factory=list)


class EngineeringTree(TaskGenerator):
    """Write the program that predicts a column well enough."""

    name = "engineering_tree"
    verifiers: Mapping[str, str] = {
        "outcome": "the chosen node's score on the private rows reaches the bound",
        "execute_code": "the node's score on the public rows reaches the bound",
    }
    duplicate_threshold = 1.01  # tasks share their words; what sets them apart is the table
    fewest_steps = 4

    def __init__(self, store: GraphStore, settings: EngineeringTreeSettings) -> None:
        super().__init__(store, settings)
        self.tools = _TOOLS
        self._table = lru_cache(256)(_table)
        self._programs = Programs(seconds=RUN_SECONDS, memory_mib=RUN_MIB, characters=MOST_OUTPUT)
        self._public = store.add("constraint", "public rows", "A node counts once its score on the public rows is known.")

    def draw(self, rng: random.Random, region: random.Random | None = None) -> TaskRecord | None:
        names = (region or rng).sample(_NAMES, self.settings.columns)
        table = {"seed": rng.getrandbits(31), "columns": len(names)}
        words = f"table {table['seed']} with columns {', '.join(names)}"
        bound = self.settings.bound
        instruction = (
            f"Predict the column target of {words}, from the other columns. Hand in a node of the tree whose program "
            f"defines predict(train, rows), and reaches R2 {bound:g} on rows that you do not see. Say done when the answer is set."
        )
        task = TaskRecord(
            instruction=instruction,
            domain=self.name,
            key=instruction,
            target=f"R2 {bound:g}",
            evidence=(self._data(table, names).id, self._public),
            verifiers=("outcome",),
            payload={"table": table, "names": names, "bound": bound},
        )
        # Some tables are noise, or a straight line: neither makes a task.
        return task if self._reached(task, "pairs") and not self._reached(task, "linear") else None

    def invented(self, task: TaskRecord) -> list[Node]:
        return [self._data(task.payload["table"], task.payload["names"])]

    def begin(self, task: TaskRecord) -> _Tree:
        return _Tree()

    def serve(self, task: TaskRecord, state: _Tree, call: Call) -> Shown:
        return getattr(self, f"_{call.name}")(task, state, **call.arguments)

    def accepts(self, task: TaskRecord, answer: str, state: _Tree | None = None) -> bool:
        if state is None:  # the verifier's word about a target, without an episode
            return answer == task.target and self._reached(task, "pairs")
        if state.answer is None:
            return False
        _, score = self._graded(task, state.nodes[state.answer].code, "private")
        return score is not None and score >= task.payload["bound"]

    def admissible(self, task: TaskRecord) -> frozenset[str]:
        if not self._reached(task, "pairs"):
            return frozenset()
        said = {column for column in (*task.payload["names"], "target") if f"column {column} " in task.instruction}
        bounds = set(re.findall(r"(?<!\w)0\.\d+", task.instruction))
        plain = said == {"target"} and bounds == {f"{task.payload['bound']:g}"}
        return frozenset({task.target or ""} if plain else {task.target or "", "what another reading asks for"})

    def one_lookup(self, task: TaskRecord) -> str | None:
        return "the first program that one would write is enough" if self._reached(task, "linear") else None

    def shortcut(self, task: TaskRecord) -> str | None:
        if self._reached(task, "mean"):
            return "the mean is enough"
        return "the request holds a program" if "def predict" in task.instruction else None

    def regressive(self, task: TaskRecord, calls: Sequence[tuple[Call, str]]) -> set[int]:
        """Calls that made, ran or gave up a node that was invalidated, unless a node that stayed, or the answer, came of it."""
        parents: dict[int, int | None] = {}
        given_up: set[int] = set()
        answer = None
        for call, shown in calls:
            node = _number(call)
            if (made := _made(call, shown)) is not None:
                parents[made] = node if call.name == "patch_code" else None
            elif call.name == "invalidate_node" and shown == f"node {node} is invalid":
                given_up.add(node or 0)
            elif call.name == "update_answer" and shown == f"the answer is node {node}":
                answer = node
        for kept in [one for one in parents if one not in given_up or one == answer]:
            while kept is not None:
                given_up.discard(kept)
                kept = parents.get(kept)
        of_a_node = ("patch_code", "execute_code", "select_node", "invalidate_node", "update_answer")
        return {
            place
            for place, (call, shown) in enumerate(calls)
            if _made(call, shown) in given_up or (call.name in of_a_node and _number(call) in given_up)
        }

    def solve(self, task: TaskRecord, rng: random.Random) -> Acts:
        yield Call("analyze", {"question": "What is in the data?"})
        yield Call("write_notes", {"text": "First the columns as they are, then their products."})
        yield Call("write_full_code", {"code": source(linear)})
        yield Call("execute_code", {"node": 1})
        best = 1
        ideas = [PAIRS, *([LAST_ONLY] if rng.random() < 0.5 else [])]
        for number, idea in enumerate(reversed(ideas), start=2):
            yield Call("patch_code", {"node": 1, "old": PLAIN, "new": idea})
            shown = yield Call("execute_code", {"node": number})
            if idea == PAIRS:
                best = number
            else:
                yield Call("invalidate_node", {"node": number, "reason": f"worse: {shown.splitlines()[0]}"})
        yield Call("list_nodes", {})
        yield Call("select_node", {"node": best})
        yield Call("update_answer", {"node": best})
        yield Call("get_current_answer", {})
        return "done"

    # The tools of the report's table, one method each.

    def _write_full_code(self, task: TaskRecord, tree: _Tree, code: str) -> Shown:
        return self._new_node(tree, tree.current, code)

    def _patch_code(self, task: TaskRecord, tree: _Tree, node: int, old: str, new: str) -> Shown:
        code = self._node(tree, node).code
        if code.count(old) != 1:
            raise Unreadable(f"the old text stands there {code.count(old)} times")
        return self._new_node(tree, node, code.replace(old, new))

    def _execute_code(self, task: TaskRecord, tree: _Tree, node: int) -> Shown:
        one = self._node(tree, node)
        one.output, one.score = self._graded(task, one.code, "public")
        if one.score is None:
            return Shown(f"no score\n{one.output[:SHOWN]}", verdict=0.0)
        reached = float(one.score >= task.payload["bound"])
        return Shown(f"public R2 {one.score:.4f}\n{one.output[:SHOWN]}".strip(), (self._public,), reached)

    def _execute_bash(self, task: TaskRecord, tree: _Tree, command: str) -> Shown:
        program = f"import os\nos.execv('/usr/bin/bash', ['bash', '-c', {command!r}])"
        return Shown(self._programs.output(program)[:SHOWN] or "(no output)")

    def _list_nodes(self, task: TaskRecord, tree: _Tree) -> Shown:
        lines = [
            f"node {number} from {one.parent or 'nothing'}: {'not run' if one.score is None else f'R2 {one.score:.4f}'}"
            + ("" if one.valid else ", invalid")
            for number, one in tree.nodes.items()
        ]
        return Shown("\n".join(lines) or "no node yet")

    def _select_node(self, task: TaskRecord, tree: _Tree, node: int) -> Shown:
        code = self._node(tree, node).code
        tree.current = node
        return Shown(code)

    def _invalidate_node(self, task: TaskRecord, tree: _Tree, node: int, reason: str) -> Shown:
        self._node(tree, node).valid = False
        return Shown(f"node {node} is invalid")

    def _update_answer(self, task: TaskRecord, tree: _Tree, node: int) -> Shown:
        if not self._node(tree, node).valid:
            raise Unreadable(f"node {node} is invalid")
        tree.answer = node
        return Shown(f"the answer is node {node}")

    def _get_current_answer(self, task: TaskRecord, tree: _Tree) -> Shown:
        return Shown("no answer yet" if tree.answer is None else f"node {tree.answer}")

    def _write_notes(self, task: TaskRecord, tree: _Tree, text: str) -> Shown:
        tree.notes.append(text)
        return Shown("noted")

    def _read_notes(self, task: TaskRecord, tree: _Tree) -> Shown:
        return Shown("\n".join(tree.notes) or "no notes yet")

    def _analyze(self, task: TaskRecord, tree: _Tree, question: str) -> Shown:
        """The sub-agent, which is a program here: about the data, or about the last output."""
        if "data" in question.lower() or tree.current is None:
            text = self._summary(json.dumps(task.payload["table"]), task.payload["names"])
            return Shown(text, task.evidence[:1])
        return Shown(tree.nodes[tree.current].output[:SHOWN] or "it has not run")

    def _node(self, tree: _Tree, node: int) -> _Node:
        if node not in tree.nodes:
            raise Unreadable(f"there is no node {node}")
        return tree.nodes[node]

    def _new_node(self, tree: _Tree, parent: int | None, code: str) -> Shown:
        if len(code) > MOST_CODE:
            raise Unreadable(f"a program has at most {MOST_CODE} characters")
        number = len(tree.nodes) + 1
        tree.nodes[number] = _Node(parent, code)
        tree.current = number
        return Shown(f"node {number}")

    def _graded(self, task: TaskRecord, code: str, split: str) -> tuple[str, float | None]:
        """What a program printed, and its R2 on a split; the labels of the split stay outside."""
        table = self._table(json.dumps(task.payload["table"]))
        rows, labels = zip(*table[split], strict=True)
        output = self._programs.output(code + _HARNESS % json.dumps([table["train"], rows]))
        said, mark, line = output.rpartition("PREDICTIONS ")
        try:
            found = [float(one) for one in json.loads(line)] if mark else []
        except (ValueError, TypeError, RecursionError):
            found = []
        return (said, r2(found, labels)) if len(found) == len(labels) else (output, None)

    def _reached(self, task: TaskRecord, program: str) -> bool:
        """Whether a reference program reaches the bound on the private rows, a little to spare for the best one."""
        table = self._table(json.dumps(task.payload["table"]))
        rows, labels = zip(*table["private"], strict=True)
        pairs = [(*row, *(a * b for i, a in enumerate(row) for b in row[i:])) for row in rows]
        train = table["train"]
        if program == "pairs":
            train = [((*row, *(a * b for i, a in enumerate(row) for b in row[i:])), label) for row, label in train]
        predict = mean if program == "mean" else linear
        return r2(predict(train, pairs if program == "pairs" else rows), labels) >= task.payload["bound"]

    def _data(self, table: Mapping[str, int], names: Sequence[str]) -> Node:
        """What is known of a table, as a fact."""
        return Node.of("fact", f"table {table['seed']}", self._summary(json.dumps(table), names))

    def _summary(self, table: str, names: Sequence[str]) -> str:
        first = "\n".join(" ".join(f"{value:.2f}" for value in (*row, label)) for row, label in self._table(table)["train"][:3])
        return f"{TRAIN} training rows, columns {', '.join(names)}, target; the first three:\n{first}"


def _number(call: Call) -> int | None:
    """The node that a call names, however a model wrote it; None where it names none."""
    try:
        return int(str(call.arguments.get("node")))
    except ValueError:
        return None


def _made(call: Call, shown: str) -> int | None:
    """The node that a call made; None where it made none."""
    made = re.fullmatch(r"node (\d+)", shown) if call.name in ("write_full_code", "patch_code") else None
    return int(made[1]) if made else None


def r2(found: Sequence[float], labels: Sequence[float]) -> float:
    """The share of the labels' variance that predictions explain; 0 for the mean."""
    middle = sum(labels) / len(labels)
    left = sum((a - b) ** 2 for a, b in zip(found, labels, strict=True))
    spread = sum((label - middle) ** 2 for label in labels)
    return 1.0 - left / spread if left == left else float("-inf")


def _table(key: str) -> dict[str, list[tuple[list[float], float]]]:
    """The rows of a table by split: a label is a hidden polynomial of degree two of the features, and noise."""
    settings = json.loads(key)
    rng = random.Random(f"table:{settings['seed']}")
    columns = settings["columns"]
    weights = [rng.uniform(-1, 1) for _ in range(columns)]
    products = [(rng.randrange(columns), rng.randrange(columns), rng.uniform(-2, 2)) for _ in range(3)]

    def row() -> tuple[list[float], float]:
        features = [round(rng.uniform(-2, 2), 3) for _ in range(columns)]
        label = sum(w * x for w, x in zip(weights, features, strict=True))
        label += sum(w * features[i] * features[j] for i, j, w in products) + rng.gauss(0, 0.2)
        return features, round(label, 3)

    return {split: [row() for _ in range(count)] for split, count in (("train", TRAIN), ("public", PUBLIC), ("private", PRIVATE))}


_NODE = "integer: Number of the node."
_TOOLS = (
    tool("write_full_code", "Write a program as a new node.", code="string: The program."),
    tool("patch_code", "Replace a text of a node's program, as a new node.", node=_NODE, old="string: Stands there once.",
         new="string: Its replacement."),
    tool("execute_code", "Run a node's program on the public rows.", node=_NODE),
    tool("execute_bash", "Run a shell command in the sandbox.", command="string: The command."),
    tool("list_nodes", "All nodes with their scores."),
    tool("select_node", "Make a node the current one, and read its program.", node=_NODE),
    tool("invalidate_node", "Give a node up.", node=_NODE, reason="string: Why."),
    tool("update_answer", "Hand a node in; a later one replaces it.", node=_NODE),
    tool("get_current_answer", "The node that is handed in."),
    tool("write_notes", "Keep a note.", text="string: The note."),
    tool("read_notes", "All notes."),
    tool("analyze", "Ask an assistant about the data or the last output.", question="string: The question."),
)  # fmt: skip
