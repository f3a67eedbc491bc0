"""Every mistake of meaning: its code, its line, and exit code 3; and nothing is written."""

import json
import random
from pathlib import Path

import pytest
from polymath.compiler.driver import check_spec
from polymath.runtime.cli import main
from polymath.specs.diagnostics import SpecInvalid

GOOD = (Path(__file__).parents[3] / "specs" / "init.yaml").read_text()
SEARCH_SFT = "{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}   #"
OPERATOR = "  operator:\n    from: student.sft"
SEARCHER = "  searcher:\n    from: student.sft"
IDLE_PHASE = "{method: sft, domains: [tools], steps: 1, batch_sequences: 2, sequence_tokens: 64, learning_rate: 1e-3}"
IDLE = f"  idle:\n    from: base\n    phases: [{IDLE_PHASE}]\n"

CASES = [
    ("a domain without a teacher", [("  - {domains: [search], teacher: searcher}\n", "")], ["E0401:15", "E0403:44"]),
    (
        "a domain with two teachers",
        [("teacher: searcher}", "teacher: searcher}\n  - {domains: [search], teacher: operator}")],
        ["E0402:55"],
    ),
    (
        "a teacher that nothing uses",
        [(OPERATOR, IDLE + OPERATOR)],
        ["E0403:48"],
    ),
    (
        "teachers that start from each other",
        [(SEARCHER, "  searcher:\n    from: operator"), (OPERATOR, "  operator:\n    from: searcher")],
        ["E0405:45", "E0405:49"],
    ),
    ("an unknown start", [(OPERATOR, "  operator:\n    from: sercher")], ["E0404:49"]),
    ("experts not divided by the expert degree", [("experts: 4", "experts: 5")], ["E0504:59", "E0504:60", "E0504:61"]),
    (
        "an expert degree that does not divide the shards",
        [("sft: {trainer: {devices: 2, expert: 2}}", "sft: {trainer: {devices: 2, expert: 2, replicate: 2}}")],
        ["E0503:59"],
    ),
    ("more devices than there are", [("sft: {trainer: {devices: 2", "sft: {trainer: {devices: 4")], ["E0501:59"]),
    ("a mesh that does not fit", [("sft: {trainer: {devices: 2", "sft: {trainer: {fsdp: 3, devices: 2")], ["E0502:59"]),
    ("replicas that do not divide", [("sft: {trainer: {devices: 2", "sft: {trainer: {replicate: 3, devices: 2")], ["E0502:59"]),
    ("a batch that the ranks do not divide", [("batch_sequences: 32\n", "batch_sequences: 33\n")], ["E0505:33"]),
    (
        "a batch that the micro-batch does not divide",
        [("sft: {trainer: {devices: 2", "sft: {trainer: {micro_batch: 5, devices: 2")],
        ["E0505:33", "E0505:47"],
    ),
    (
        "partly filled machines",
        [
            ("per_node: 2}", "per_node: 3, nodes: 2}"),
            ("sft: {trainer: {devices: 2, expert: 2", "sft: {trainer: {devices: 4, expert: 2"),
        ],
        ["E0506:59"],
    ),
    ("both epochs and steps", [("    steps: 200\n", "    steps: 200\n    epochs: 1\n")], ["E0301:31"]),
    ("neither epochs nor steps", [("    steps: 200\n", "")], ["E0301:31"]),
    ("both path and synthesize", [(SEARCH_SFT, "{synthesize: 2000, path: x.jsonl}   #")], ["E0302:18"]),
    ("neither path nor synthesize", [(SEARCH_SFT, "{name: default}   #")], ["E0302:18"]),
    ("a habit of a file", [(SEARCH_SFT, "{path: data.jsonl, habit_rate: 0.5}   #")], ["E0303:18"]),
    ("a random model without a shape", [("  shape: {", "  # {")], ["E0304:8"]),
    ("a shape beside a checkpoint", [("checkpoint: random", "checkpoint: weights")], ["E0304:12", "E0317:10"]),
    ("no tokenizer", [("tokenizer: builtin:tiny-words", "tokenizer: from-checkpoint")], ["E0305:11"]),
    ("an unknown built-in tokenizer", [("builtin:tiny-words", "builtin:words")], ["E0204:11"]),
    ("heads not divided", [("kv_heads: 2", "kv_heads: 3")], ["E0306:12"]),
    ("too many experts per token", [("experts_per_token: 2", "experts_per_token: 5")], ["E0306:12"]),
    ("no trajectories of that name", [("trajectories: clean, steps: 100", "trajectories: clan, steps: 100")], ["E0307:47"]),
    (
        "no limits",
        [("    limits: {turns: 8, response_tokens: 24, context_tokens: 112}\n  tools", "  tools")],
        ["E0308:15", "E0308:15"],
    ),
    ("no world", [("    world: tools\n", "")], None),
    (
        "a row shorter than an episode",
        [("prompts: 16, samples: 8, sequence_tokens: 128", "prompts: 16, samples: 8, sequence_tokens: 64")],
        ["E0309:51"],
    ),
    (
        "a row longer than the model's context",
        [
            (
                "steps: 200\n    batch_sequences: 32\n    sequence_tokens: 128",
                "steps: 200\n    batch_sequences: 32\n    sequence_tokens: 129",
            )
        ],
        ["E0310:34"],
    ),
    ("an unknown world", [("world: search", "world: serch")], ["E0311:16"]),
    (
        "a wrong setting of a world",
        [("    world: search\n", "    world: search\n    settings: {hop: 2, entities: 1}\n")],
        ["E0201:17", "E0205:17"],
    ),
    ("a missing file", [(SEARCH_SFT, "{path: none.jsonl}   #")], ["E0312:18"]),
    ("an empty file", [(SEARCH_SFT, "{path: empty.jsonl}   #")], ["E0313:18"]),
    ("a missing checkpoint", [("checkpoint: random", "checkpoint: none"), ("  shape: {", "  # {")], ["E0312:10"]),
    ("pickled weights", [("checkpoint: random", "checkpoint: weights"), ("  shape: {", "  # {")], ["E0317:10"]),
    ("too few held-out tasks", [("episodes: 200", "episodes: 201")], ["E0315:20", "E0315:27"]),
    ("more updates than prompts", [("prompts: 16, samples", "updates: 17, prompts: 16, samples")], ["E0316:51"]),
    ("a reserved name", [("  operator:\n", "  sft:\n"), ("teacher: operator", "teacher: sft")], ["E0406:48"]),
    ("an unknown model on the scoreboard", [("episodes: 200", "models: [studnt], episodes: 200")], ["E0407:63"]),
    ("a control beside distillation is fine", [("episodes: 200", "continued_sft: true, episodes: 200")], []),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "pytorch_model.bin").touch()
    return tmp_path


def found_in(path: Path) -> list[str]:
    try:
        check_spec(path)
    except SpecInvalid as error:
        return sorted(f"{one.code}:{one.span.line}" for one in error.diagnostics)
    return []


@pytest.mark.parametrize(("changes", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_mistake_is_named_where_it_stands(
    folder: Path, changes: list[tuple[str, str]], expected: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GOOD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = folder / "my.yaml"
    path.write_text(text)
    found = found_in(path)
    if expected is None:
        assert found and all(one.startswith("E0308") for one in found)
    else:
        assert found == expected
    if found:
        assert main(["compile", str(path), "-o", str(folder / "plan")]) == 3
        assert f"{path}:" in capsys.readouterr().err
        assert not (folder / "plan").exists()


def test_mistakes_of_meaning_are_shown_beside_those_of_form(folder: Path) -> None:
    text = GOOD.replace("learning_rate: 4e-3", "learnin_rate: 4e-3").replace("  - {domains: [tools], teacher: operator}\n", "")
    (folder / "my.yaml").write_text(text)
    assert found_in(folder / "my.yaml") == ["E0201:35", "E0401:22", "E0403:48"]


def test_a_mistake_of_form_is_not_echoed(folder: Path) -> None:
    (folder / "my.yaml").write_text(GOOD.replace("    steps: 200\n", "    stepz: 200\n").replace("kv_heads: 2", "kv_heads: two"))
    assert found_in(folder / "my.yaml") == ["E0201:32", "E0202:12"]


def test_no_mutilated_spec_ends_in_anything_but_diagnostics(folder: Path) -> None:
    chance = random.Random(7)
    pieces = [
        b"",
        b"- ",
        b": ",
        b"{",
        b"]",
        b"\n",
        b"  ",
        b"\t",
        b"'",
        b"&a ",
        b"*a",
        b"!x ",
        b"\xff",
        b"\x00",
        b"~",
        b"-1",
        b"1e400",
        b"? ",
    ]
    pieces.append(b"a" * 5000)
    path = folder / "my.yaml"
    for _ in range(300):
        text = GOOD.encode()
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(text))
            text = text[:place] + chance.choice(pieces) + text[place + chance.randint(0, 12) :]
        path.write_bytes(text)
        try:
            check_spec(path)
        except SpecInvalid as error:
            assert error.diagnostics and error.render()


@pytest.mark.parametrize("name", ["x" * 300, "a\x00b", "locked/data.jsonl"])
def test_a_path_that_cannot_be_looked_at_is_a_missing_file(folder: Path, name: str) -> None:
    (folder / "my.yaml").write_text(GOOD.replace(SEARCH_SFT, f"{{path: {json.dumps(name)}}}   #", 1))
    assert found_in(folder / "my.yaml") == ["E0312:18"]
