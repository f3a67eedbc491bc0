"""A sweep's rows are specs that extend the base: where values stand, what is shared, and what is refused before anything runs."""

from pathlib import Path

import pytest
from polymath.compiler.driver import compile_in_memory
from polymath.compiler.provenance import find_origins
from polymath.compiler.sweep import CompiledSweep, compile_sweep
from polymath.specs.diagnostics import SpecInvalid

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke.yaml"
HEAD = "polymath_sweep: 1\nname: small\nbase: smoke.yaml\nseeds: [11, 12]\nrows:\n"
K2 = "student: {distill: {loss: {support: {top_k: 2}}}}"


def write(folder: Path, rows: str, base: str = "", head: str = HEAD) -> Path:
    text = SMOKE.read_text()
    for line in base.splitlines():
        old, _, new = line.partition(" => ")
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "smoke.yaml").write_text(text)
    (folder / "sweep.yaml").write_text(head + rows)
    return folder / "sweep.yaml"


def compiled(folder: Path, rows: str, base: str = "") -> CompiledSweep:
    return compile_sweep(write(folder, rows, base))


def mistakes(path: Path) -> list[tuple[str, int, str]]:
    with pytest.raises(SpecInvalid) as caught:
        compile_sweep(path)
    return [(one.code, one.span.line, one.detail) for one in caught.value.diagnostics]


def test_a_row_without_a_change_is_the_base_at_its_seed(tmp_path: Path) -> None:
    found = compiled(tmp_path, "  routed: {}\n")
    assert [(one.row, one.seed) for one in found.variants] == [("routed", 11), ("routed", 12)]
    for one in found.variants:
        alone = compile_in_memory(tmp_path / "smoke.yaml", [f"seed={one.seed}"]).plan
        assert alone is not None and one.plan.jobs == alone.jobs
    assert found.folder == tmp_path.parent / "runs" / "small"


def test_rows_of_a_seed_share_every_job_that_they_do_not_change(tmp_path: Path) -> None:
    found = compiled(tmp_path, f"  routed: {{}}\n  k2: {{seeds: [12], change: {{{K2}}}}}\n")
    jobs = {(one.row, one.seed): {job.id: job.folder for job in one.plan.jobs} for one in found.variants}
    changed = {name for name, folder in jobs["k2", 12].items() if folder != jobs["routed", 12][name]}
    assert changed == {"distill", "evaluate.student", "export", "sft_continued", "evaluate.sft_continued"}
    assert ("k2", 11) not in jobs
    assert not set(jobs["routed", 11].values()) & set(jobs["routed", 12].values())


def test_a_value_of_a_row_comes_from_its_line_of_the_sweep_file(tmp_path: Path) -> None:
    rows = "  routed: {}\n  k2:\n    change:\n      student: {distill: {loss: {support: {top_k: 2}}}}\n"
    found = compiled(tmp_path, rows)
    done = next(one.done for one in found.variants if one.row == "k2")
    origins = {path: one.origin for path, one in find_origins(done).spec.items()}
    assert origins["student.distill.loss.support.top_k"].endswith("sweep.yaml:9")
    assert "smoke.yaml:" in origins["student.distill.learning_rate"]
    assert origins["seed"].endswith("sweep.yaml:4")


def test_every_mistake_of_every_row_is_shown_once_and_names_the_row_that_breaks_the_base(tmp_path: Path) -> None:
    rows = (
        "  routed: {}\n  a: {change: {student: {sft: {stepps: 3}}}}\n  b: {change: {teachers: {operator: null}}}\n"
        "  c: {change: {seed: 3, student: {distill: {steps: 0}}}}\n"
    )
    found = mistakes(write(tmp_path, rows))
    assert [(code, line) for code, line, _ in found][:1] == [("E0303", 9)]
    assert {(code, line) for code, line, _ in found} >= {("E0201", 7), ("E0205", 9)}
    (broken,) = [detail for code, _, detail in found if code == "E0208"]
    assert broken.endswith("(in row `b`)")


def test_a_mistake_of_the_base_is_shown_once_for_all_rows(tmp_path: Path) -> None:
    found = mistakes(write(tmp_path, f"  routed: {{}}\n  k2: {{change: {{{K2}}}}}\n", base="steps: 20 => steps: 0"))
    assert [code for code, _, _ in found] == ["E0205"]
    assert "in row" not in found[0][2]


@pytest.mark.parametrize(
    ("rows", "code", "line"),
    [
        ("  routed: {seeds: [11]}\n  k2: {seeds: [12]}\n", "E0601", 7),
        ("  routed: {}\n  k2: {seeds: [11, 11]}\n", "E0209", 7),
        ("  routed: {}\n  k2: {subject: operator}\n", "E0601", 7),
        ("  routed: {}\n  k2: {subject: studnet}\n", "E0407", 7),
        ("  routed: {}\n  k2: {change: {evaluate: {episodes: 20}}}\n", "E0601", 7),
        ("  routed: {}\n  k2: {change: {domains: {tools: {settings: {tools: 3}}}}}\n", None, 7),
        ("  routed: {}\n  k2: {change: {evaluate: {models: [base]}}}\n", "E0407", 7),
        ("  routed: {change: {evaluate: {models: [student]}}}\n", "E0601", 6),
        ("  routed: {change: {student: {distill: null}, evaluate: {continued_sft: false}}, subject: sft}\n", "E0601", 6),
    ],
)
def test_a_row_that_cannot_be_compared_is_refused_on_its_line(tmp_path: Path, rows: str, code: str | None, line: int) -> None:
    found = mistakes(write(tmp_path, rows))
    assert line in [one for _, one, _ in found]
    assert code is None or (code, line) in [one[:2] for one in found]


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (HEAD.replace("seeds: [11, 12]\n", ""), "E0203"),
        (HEAD.replace("seeds: [11, 12]", "seeds: []"), "E0207"),
        (HEAD.replace("seeds: [11, 12]", "seeds: [-1]"), "E0205"),
        (HEAD.replace("polymath_sweep: 1", "polymath_sweep: 2"), "E0204"),
        (HEAD.replace("smoke.yaml", "smok.yaml"), "E0112"),
        (HEAD.replace("smoke.yaml", "../smoke.yaml"), "E0111"),
        (HEAD.replace("smoke.yaml", "sweep.yaml"), "E0110"),
        (HEAD.replace("name: small", "nmae: small"), "E0201"),
    ],
)
def test_the_sweep_file_has_a_form_of_its_own(tmp_path: Path, head: str, code: str) -> None:
    assert code in [one for one, _, _ in mistakes(write(tmp_path, "  routed: {}\n", head=head))]


ALONG = "along: {title: steps, points: [{at: 4, base: smoke.yaml}, {at: 8, base: longer.yaml}]}"


def test_every_row_is_compiled_at_every_point_of_an_axis_and_compared_within_its_point(tmp_path: Path) -> None:
    head = HEAD.replace("base: smoke.yaml", ALONG)
    path = write(tmp_path, f"  routed: {{}}\n  k2: {{seeds: [12], change: {{{K2}}}}}\n", head=head)
    (tmp_path / "longer.yaml").write_text("polymath: 1\nextends: smoke.yaml\nevaluate: {episodes: 39}\n")
    found = compile_sweep(path)
    assert [(one.at, one.row, one.seed) for one in found.variants] == [
        (4, "routed", 11),
        (4, "routed", 12),
        (4, "k2", 12),
        (8, "routed", 11),
        (8, "routed", 12),
        (8, "k2", 12),
    ]
    (job,) = (job for job in found.variants[-1].plan.jobs if job.id == "evaluate.student")
    assert job.settings["stage"]["episodes"] == 39


@pytest.mark.parametrize(
    ("bases", "code"),
    [
        (f"base: smoke.yaml\n{ALONG}", "E0303"),
        ("", "E0203"),
        (ALONG.replace("at: 8", "at: 4"), "E0209"),
        (ALONG.replace("longer.yaml", "lnoger.yaml"), "E0112"),
        (ALONG.replace(", {at: 8, base: longer.yaml}", ""), "E0207"),
    ],
)
def test_an_axis_needs_a_base_for_each_of_its_points(tmp_path: Path, bases: str, code: str) -> None:
    (tmp_path / "longer.yaml").write_text("polymath: 1\nextends: smoke.yaml\n")
    path = write(tmp_path, "  routed: {}\n", head=HEAD.replace("base: smoke.yaml", bases))
    assert code in [one for one, _, _ in mistakes(path)]


def test_a_relative_path_in_a_row_means_the_folder_of_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write(tmp_path / "bases", "")
    (tmp_path / "words").mkdir()
    row = '  routed: {}\n  words: {change: {model: {tokenizer: "wordz"}}}\n'
    (tmp_path / "sweep.yaml").write_text(HEAD.replace("smoke.yaml", "bases/smoke.yaml") + row)
    ((code, _, detail), *_) = mistakes(tmp_path / "sweep.yaml")
    assert code == "E0312" and "wordz" in detail
    with pytest.raises(SpecInvalid, match="did you mean `words`"):
        compile_sweep(tmp_path / "sweep.yaml")
