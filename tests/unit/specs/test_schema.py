"""The JSON Schema says what the builder says."""

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from polymath.specs.build import build
from polymath.specs.model import Spec
from polymath.specs.schema import extending_schema, recipe_schema
from polymath.specs.yaml import read_text

TEMPLATE = files("polymath.specs").joinpath("init.yaml").read_text()


def test_the_schema_beside_the_code_is_fresh() -> None:
    written = files("polymath.specs.schema").joinpath("recipe.v1.json").read_text()
    assert written == json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n", (
        "polymath schema > specs/schema/recipe.v1.json"
    )


def test_the_schema_of_extending_specs_is_fresh_and_wants_nothing_but_whole_items() -> None:
    written = files("polymath.specs.schema").joinpath("extending.v1.json").read_text()
    assert written == json.dumps(extending_schema(), indent=2, ensure_ascii=False) + "\n", (
        "polymath schema --extending > specs/schema/extending.v1.json"
    )
    check = jsonschema.Draft202012Validator(extending_schema()).is_valid
    assert check({"extends": "a.yaml", "student": {"sft": {"steps": 3}}})
    assert not check({"student": {"sft": {"steps": 3}}})
    assert not check({"extends": "a.yaml", "student": {"sft": {"step": 3}}})
    assert not check({"extends": "a.yaml", "routing": [{"teacher": "a"}]})
    assert not check({"extends": "a.yaml", "teachers": {"a": {"phases": [{"method": "sft"}]}}})


def test_the_schema_is_valid_and_closed() -> None:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["additionalProperties"] is False
        assert all(field["description"] and field["title"] for field in definition["properties"].values())


def changes() -> Iterator[tuple[str, Any]]:
    yield "seed", "seven"
    yield "seed", -1
    yield "name", "Bad Name"
    yield "model.family", "qwen9"
    yield "model.shape.heads", 2.5
    yield "student.sft.betas", [0.9]
    yield "student.sft.betas", [0.9, 1.0]
    yield "student.sft.learning_rate", 0
    yield "student.distill.loss.support.top_k", 1
    yield "domains.search.settings", {"entitys": 3}
    yield "domains.search.settings", {"hops": 0}
    yield "teachers.searcher.phases.0.method", "dpo"
    yield "teachers.searcher.phases.0.samples", 3
    yield "teachers.searcher.phases", []
    yield "placement.sft.trainer.fsdp", "all"
    yield "placement.sft.trainer.fsdp", 0
    yield "extra", 1
    yield "domains", {}
    yield "polymath", 2
    # and some that both accept
    yield "student.sft.domains", ["search"]
    yield "placement.sft.trainer.fsdp", 2
    yield "student.sft.learning_rate", 1
    yield "evaluate", None
    yield "domains.search.settings", {"hops": 3}
    yield "teachers.searcher.phases.0.epochs", 2.5


@pytest.mark.parametrize(("path", "value"), list(changes()))
def test_schema_and_builder_agree(path: str, value: Any) -> None:
    data = copy.deepcopy(read_text(TEMPLATE, "init").data)
    *parents, last = path.split(".")
    here = data
    for part in parents:
        here = here[int(part)] if isinstance(here, list) else here[part]
    here[last] = value
    problems = build(Spec, data)[1]
    if path.endswith("settings"):  # the builder leaves worlds to the compiler
        from polymath.specs.worlds import BUILTIN_WORLDS

        problems += build(BUILTIN_WORLDS["search"], value)[1]
    accepted = jsonschema.Draft202012Validator(recipe_schema()).is_valid(data)
    assert accepted == (not problems), problems
