"""Every mistake of form at once, each where it stands."""

from pathlib import Path

import pytest
from polymath.runtime.cli import main
from polymath.specs.codes import CODES
from polymath.specs.diagnostics import Diagnostic, Span, SpecInvalid, UserError, render
from polymath.specs.load import load_spec

GOOD = Path(__file__).parents[3] / "specs" / "init.yaml"


def spec_file(folder: Path, *changes: tuple[str, str]) -> Path:
    text = GOOD.read_text()
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    (folder / "my.yaml").write_text(text)
    return folder / "my.yaml"


def mistakes(path: Path, *overrides: str) -> list[Diagnostic]:
    with pytest.raises(SpecInvalid) as caught:
        load_spec(path, overrides)
    assert caught.value.exit_code == 3
    return list(caught.value.diagnostics)


def test_the_template_is_valid() -> None:
    assert load_spec(GOOD).spec.name == "my-student"


def test_all_mistakes_are_found_at_once_with_suggestions(tmp_path: Path) -> None:
    path = spec_file(
        tmp_path,
        ("seed: 7", "seed: seven"),
        ("batch_sequences: 32\n", "batch_sequence: 32\n"),
        ("qwen3_moe", "qwen3moe"),
        ("{method: grpo, domains: [tools]", "{method: grop, domains: [tols]"),
        ("teacher: operator", "teacher: operater"),
    )
    found = {one.code + " " + (one.fix or ""): one.span.line for one in mistakes(path)}
    assert found == {
        "E0202 ": 6,
        "E0204 did you mean `qwen3_moe`?": 9,
        "E0201 did you mean `batch_sequences`?": 33,
        "E0204 did you mean `grpo`?": 51,
        "E0208 did you mean `tools`?": 51,
        "E0208 did you mean `operator`?": 55,
    }


def test_the_header_line_can_be_clicked(tmp_path: Path) -> None:
    path = spec_file(tmp_path, ("    learning_rate: 4e-3", "    learnin_rate: 4e-3"))
    with pytest.raises(SpecInvalid) as caught:
        load_spec(path)
    lines = caught.value.render().splitlines()
    assert lines[0] == f"{path}:35:5: error[E0201]: unknown field"
    assert lines[2:5] == [
        "35 |     learnin_rate: 4e-3",
        "   |     ^^^^^^^^^^^^ not a field of `student.sft`",
        "   = did you mean `learning_rate`?",
    ]


def test_a_missing_field_points_at_its_block(tmp_path: Path) -> None:
    (one,) = mistakes(spec_file(tmp_path, ("    sequence_tokens: 128\n", "")))
    assert (one.code, one.span.line, one.detail) == ("E0203", 31, "`sequence_tokens` is missing")


def test_top_k_of_one_is_refused_with_the_reason(tmp_path: Path) -> None:
    (one,) = mistakes(spec_file(tmp_path, ("top_k: 16", "top_k: 1")))
    assert one.code == "E0205" and "always zero" in (one.fix or "")


def test_an_override_replaces_a_value(tmp_path: Path) -> None:
    overrides = ["student.sft.steps=7", "teachers.operator.phases[0].samples=4", "student.sft.domains=[tools]", "storage.runs=../r"]
    spec = load_spec(GOOD, overrides).spec
    assert (spec.student.sft.steps, spec.student.sft.domains, spec.storage.runs) == (7, ("tools",), "../r")
    assert spec.teachers["operator"].phases[0].samples == 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "code", "fix"),
    [
        ("student.sft.step=3", "E0210", "did you mean `student.sft.steps`?"),
        ("domains.serch.prompts.train=3", "E0210", "did you mean `domains.search`?"),
        ("teachers.operator.phases.4.steps=3", "E0210", None),
        ("teachers.operator.phases[\u00b2].steps=3", "E0210", None),
        ("student.sft.steps=many", "E0202", None),
        ("student.sft.steps=0", "E0205", None),
    ],
)
def test_a_wrong_override_is_named_itself(override: str, code: str, fix: str | None) -> None:
    (one,) = mistakes(GOOD, override)
    assert (one.code, str(one.span), one.fix) == (code, f"--set {override}", fix)


def test_an_override_without_a_value_is_a_usage_error() -> None:
    with pytest.raises(UserError) as caught:
        load_spec(GOOD, ["seed"])
    assert caught.value.exit_code == 64


@pytest.mark.parametrize("text", ["", "# nothing\n", "[1, 2]\n", "just words\n", "domains: 3\nteachers: [1]\n"])
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert mistakes(tmp_path / "x.yaml")


def test_the_caret_stays_under_wide_characters() -> None:
    span = Span(file="x", line=1, column=4, end_column=6)
    shown = render(Diagnostic(code="E0201", summary="s", span=span, detail="d"), "日本\tab")
    assert shown.splitlines()[-1].split("|")[1] == "     \t^^ d"


def test_codes_are_never_reused_and_always_explained() -> None:
    assert all(code.title and code.doc.endswith((".", "!")) for code in CODES.values())
    assert list(CODES) == sorted(CODES)


def test_whoever_makes_a_thousand_mistakes_is_told_of_the_first_hundred(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD.read_text() + "".join(f"field{i}: 1\n" for i in range(1000)))
    with pytest.raises(SpecInvalid) as caught:
        load_spec(path)
    assert len(caught.value.diagnostics) == 100
    assert caught.value.render().endswith("the first 100 mistakes; exit code 3")


def test_of_a_long_line_the_part_around_the_mistake_is_shown() -> None:
    row = "a" * 1000 + "bad" + "c" * 1000
    found = Diagnostic(code="E0201", summary="s", span=Span(file="x", line=1, column=1001, end_column=1004), detail="d")
    shown = render(found, row).splitlines()
    assert len(shown[2]) < 300
    assert shown[2][shown[3].index("^") :].startswith("bad")


@pytest.mark.parametrize("place", ["checkpoint: random", "path: x"])
def test_a_password_in_a_url_is_refused_and_shown_nowhere(tmp_path: Path, place: str) -> None:
    url = "s3://ada:lovelace@bucket/x"
    if place.startswith("check"):
        path = spec_file(tmp_path, ("checkpoint: random", f'checkpoint: "{url}"'))
    else:
        path = spec_file(tmp_path, ("{synthesize: 2000, habit_rate: 0.65, slip_rate: 0.05}", f'{{path: "{url}"}}'))
    with pytest.raises(SpecInvalid) as caught:
        load_spec(path)
    assert "E0322" in {one.code for one in caught.value.diagnostics}
    assert "lovelace" not in caught.value.render() and "s3://" in caught.value.render()


def test_a_password_given_by_an_override_is_shown_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["validate", str(GOOD), "--set", "model.checkpoint=https://ada:lovelace@example.org/x"]
    for extra in ([], ["--json"]):
        assert main([*arguments, *extra]) == 3
        said = capsys.readouterr()
        assert "lovelace" not in said.out + said.err and "E0322" in said.out + said.err
