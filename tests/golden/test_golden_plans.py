"""The plan of every recipe, in files: a change of the compiler shows what it does to each of them.

`pytest tests/golden --update-golden` renews the files; their difference belongs into the same commit as its cause.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from polymath.compiler.canonical import readable_json
from polymath.compiler.driver import compile_spec
from shipped import RECIPES

FOLDER = Path(__file__).parent
# What a recipe reads that users bring. Every content would do; its hash is part of the plan.
DATA = {
    "data/airline.jsonl": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "reward": 1.0},
    "data/gsm8k.jsonl": {"question": "a", "answer": "b"},
}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """The recipes with the data they need, in a folder of their own."""
    folder = tmp_path / "recipes"
    (folder / "data").mkdir(parents=True)
    for recipe in RECIPES:
        shutil.copy(recipe, folder)
    for name, row in DATA.items():
        (folder / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", [recipe.stem for recipe in RECIPES])
def test_the_plan_of_a_recipe_is_as_it_was(name: str, recipes: Path, golden: Callable[[Path, str], None], tmp_path: Path) -> None:
    compile_spec(recipes / f"{name}.yaml", tmp_path / "plan")
    jobs = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "plan" / "jobs").glob("*.json")}
    golden(FOLDER / name / "jobs.json", readable_json(jobs))
    golden(FOLDER / name / "plan.json", (tmp_path / "plan" / "plan.json").read_text())


def test_every_plan_has_its_recipe() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/plan.json")} == {recipe.stem for recipe in RECIPES}
