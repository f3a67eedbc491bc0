"""The proof of routing: every domain once, with its one teacher, whatever the order of the rules."""

import json
from pathlib import Path

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.plan import RoutedDomain, read_plan
from polymath.runtime.cli import main

TEMPLATE = Path(__file__).parents[3] / "specs" / "init.yaml"
RULES = "  - {domains: [search], teacher: searcher}\n  - {domains: [tools], teacher: operator}\n"


def test_the_plan_holds_the_table(tmp_path: Path) -> None:
    compile_spec(TEMPLATE, tmp_path / "plan")
    assert read_plan(tmp_path / "plan").routing == (
        RoutedDomain(domain="search", teacher="searcher", tasks=500, prompts=50 * 16, tokens=50 * 16 * 112),
        RoutedDomain(domain="tools", teacher="operator", tasks=500, prompts=50 * 16, tokens=50 * 16 * 112),
    )


def test_the_order_of_the_rules_means_nothing(tmp_path: Path) -> None:
    text = TEMPLATE.read_text()
    assert RULES in text
    (tmp_path / "my.yaml").write_text(text)
    before = compile_spec(tmp_path / "my.yaml", tmp_path / "plan")
    (tmp_path / "my.yaml").write_text(text.replace(RULES, "".join(reversed(RULES.splitlines(keepends=True)))))
    assert compile_spec(tmp_path / "my.yaml", tmp_path / "plan") == before


def test_validate_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["validate", str(TEMPLATE), "--routing"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["domain", "teacher", "tasks", "prompts", "tokens", "at", "most"],
        ["search", "searcher", "500", "800", "89,600"],
        ["tools", "operator", "500", "800", "89,600"],
        ["all", "1,000", "1,600", "179,200"],
    ]
    assert main(["validate", str(TEMPLATE), "--routing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routing"][0]["teacher"] == "searcher"
