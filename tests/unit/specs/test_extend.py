"""`extends`: what a spec takes from another, where its values stand, and what it may not reach."""

from pathlib import Path

import pytest
from polymath.specs.diagnostics import Diagnostic, SpecInvalid
from polymath.specs.load import load_spec

GOOD = (Path(__file__).parents[3] / "specs" / "init.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bases").mkdir()
    (tmp_path / "base.yaml").write_text(GOOD)
    (tmp_path / "bases" / "deep.yaml").write_text(GOOD)
    return tmp_path


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def mistakes(path: Path) -> list[Diagnostic]:
    with pytest.raises(SpecInvalid) as caught:
        load_spec(path)
    return list(caught.value.diagnostics)


def test_mappings_merge_and_lists_and_scalars_replace(folder: Path) -> None:
    text = "extends: base.yaml\nname: mine\nstudent: {sft: {steps: 3}}\ndomains: {tools: {trajectories: [{synthesize: 5}]}}\n"
    spec = load_spec(write(folder, text)).spec
    base = load_spec(folder / "base.yaml").spec
    assert (spec.name, spec.student.sft.steps, spec.student.sft.learning_rate) == ("mine", 3, 4e-3)
    assert spec.domains["tools"].trajectories != base.domains["tools"].trajectories
    assert len(spec.domains["tools"].trajectories) == 1
    assert spec.domains["search"] == base.domains["search"]


def test_every_value_stands_where_it_was_written(folder: Path) -> None:
    loaded = load_spec(write(folder, "extends: base.yaml\nstudent:\n  sft: {steps: 3}\n"))
    assert str(loaded.spans.at(("student", "sft", "steps"))) == f"{folder}/my.yaml:3:16"
    rate = loaded.spans.at(("student", "sft", "learning_rate"))
    assert rate.file == f"{folder}/base.yaml" and "learning_rate" in GOOD.splitlines()[rate.line - 1]


def test_a_mistake_in_the_other_file_is_shown_there(folder: Path) -> None:
    write(folder, GOOD.replace("seed: 7", "seed: seven"), "base.yaml")
    path = write(folder, "extends: base.yaml\nnam: x\n")
    assert {(one.code, Path(one.span.file).name) for one in mistakes(path)} == {("E0202", "base.yaml"), ("E0201", "my.yaml")}
    with pytest.raises(SpecInvalid, match="seed: seven"):
        load_spec(path)


def test_a_chain_is_followed_and_the_nearest_wins(folder: Path) -> None:
    write(folder, "extends: bases/deep.yaml\nseed: 1\nname: middle\n", "base.yaml")
    spec = load_spec(write(folder, "extends: base.yaml\nseed: 2\n")).spec
    assert (spec.seed, spec.name) == (2, "middle")


def test_relative_paths_mean_the_folder_of_the_file_that_wrote_them(folder: Path) -> None:
    deep = GOOD.replace("{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}", "{path: data/a.jsonl}", 1)
    deep = deep.replace("tokenizer: builtin:tiny-words", "tokenizer: ../words")
    write(folder / "bases", deep, "deep.yaml")
    spec = load_spec(write(folder, "extends: bases/deep.yaml\nstorage: {runs: out}\n")).spec
    assert spec.domains["search"].trajectories[0].path == "bases/data/a.jsonl"
    assert (spec.model.tokenizer, spec.model.checkpoint, spec.storage.runs) == ("words", "random", "out")


@pytest.mark.parametrize("place", ["/abs/a.jsonl", "s3://bucket/a.jsonl", "~/a.jsonl"])
def test_other_paths_mean_what_they_say(folder: Path, place: str) -> None:
    write(
        folder / "bases",
        GOOD.replace("{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}", f'{{path: "{place}"}}', 1),
        "deep.yaml",
    )
    spec = load_spec(write(folder, "extends: bases/deep.yaml\n")).spec
    assert spec.domains["search"].trajectories[0].path == place


def test_a_cycle_is_shown_with_its_chain(folder: Path) -> None:
    write(folder, "extends: b.yaml\n")
    write(folder, "seed: 1\nextends: my.yaml\n", "b.yaml")
    (one,) = mistakes(folder / "my.yaml")
    assert (one.code, Path(one.span.file).name, one.span.line) == ("E0110", "b.yaml", 2)
    assert one.detail == " -> ".join(f"{folder}/{name}.yaml" for name in ("my", "b", "my"))
    (one,) = mistakes(write(folder, "extends: self.yaml\n", "self.yaml"))
    assert one.code == "E0110"


@pytest.mark.parametrize(
    "base",
    ["../base.yaml", "/etc/hostname", "bases/../../base.yaml", "https://example.org/a.yaml", "file:///etc/hostname", "link.yaml"],
)
def test_nothing_outside_the_folder_is_read(folder: Path, base: str) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (inner / "link.yaml").symlink_to(folder / "base.yaml")
    (one,) = mistakes(write(inner, f"extends: {base}\n"))
    assert (one.code, one.span.line) == ("E0111", 1)


@pytest.mark.parametrize("base", ["none.yaml", "bases", '"\\0"', "''", "loop.yaml"])
def test_what_cannot_be_read_is_named(folder: Path, base: str) -> None:
    (folder / "loop.yaml").symlink_to(folder / "loop.yaml")
    (one,) = mistakes(write(folder, f"extends: {base}\n"))
    assert one.code == "E0112"


@pytest.mark.parametrize(("base", "code"), [("[1]\n", "E0202"), ("a: &x 1\n", "E0103"), ("a: [\n", "E0101")])
def test_a_broken_base_is_blamed_alone(folder: Path, base: str, code: str) -> None:
    write(folder, base, "base.yaml")
    (one,) = mistakes(write(folder, "extends: base.yaml\n"))
    assert (one.code, Path(one.span.file).name) == (code, "base.yaml")


def test_an_override_cannot_change_what_is_extended(folder: Path) -> None:
    with pytest.raises(SpecInvalid, match="E0303"):
        load_spec(write(folder, "extends: base.yaml\n"), ["extends=bases/deep.yaml"])


def test_null_takes_away_what_the_other_says(folder: Path) -> None:
    text = "extends: base.yaml\nteachers: {searcher: null}\nrouting: []\nstudent: {distill: null}\n"
    loaded = load_spec(write(folder, text))
    base = load_spec(folder / "base.yaml").spec
    assert loaded.spec.teachers.keys() == base.teachers.keys() - {"searcher"}
    assert loaded.spec.student.distill is None
    assert loaded.spec.student.sft == base.student.sft and loaded.spec.domains == base.domains


def test_null_takes_nothing_away_that_is_not_there(folder: Path) -> None:
    (one,) = mistakes(write(folder, "extends: base.yaml\nteachers:\n  seracher: null\n"))
    assert (one.code, one.span.line) == ("E0202", 3)
