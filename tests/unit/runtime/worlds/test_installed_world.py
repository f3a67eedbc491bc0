"""A world of one's own, as the documentation tells a new user to make it: installed by pip, checked, compiled, played."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[4] / "docs/worlds.md"
SPEC = """
polymath: 1
name: lockers
seed: 3
model:
  family: qwen3_moe
  checkpoint: random
  tokenizer: builtin:bytes
  shape: {hidden: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, experts: 2, experts_per_token: 1, expert_hidden: 16,
    context_tokens: 2048}
domains:
  lockers:
    world: lockers
    settings: {lockers: 50}
    trajectories: [{synthesize: 20, habit_rate: 0.5}]
    prompts: {train: 20, heldout: 5}
    limits: {turns: 6, response_tokens: 256, context_tokens: 2048}
student:
  sft: {epochs: 1, batch_sequences: 1, sequence_tokens: 2048, learning_rate: 1e-3}
cluster: {accelerator: cpu, nodes: 1, per_node: 1}
placement: {sft: {trainer: {devices: 1}}}
"""


def documented(language: str, holding: str) -> str:
    section = DOCS.read_text(encoding="utf-8").split("## Your own world")[1]
    (block,) = [text for text in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL) if holding in text]
    return block


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the documented package is installed; its module says when it is imported."""
    package, site = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("site")
    witness = site / "imported"
    module = documented("python", "class LockersWorld") + f"\nopen({str(witness)!r}, 'w').close()\n"
    assert len(documented("python", "class LockersWorld").splitlines()) <= 65
    (package / "lockers.py").write_text(module)
    (package / "lockers.schema.json").write_text(documented("json", "properties"))
    (package / "pyproject.toml").write_text(documented("toml", "entry-points"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
        "--target",
        str(site),
    ]
    subprocess.run([*command, str(package)], check=True, capture_output=True, timeout=300)
    return site


def polymath(site: Path, *arguments: str, module: str = "polymath.runtime.cli") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_a_documented_world_is_checked_compiled_and_played(installed: Path, tmp_path: Path) -> None:
    spec, plan, witness = tmp_path / "lockers.yaml", tmp_path / "plan", installed / "imported"
    spec.write_text(SPEC)
    for arguments in (("validate",), ("lock", "--no-tokens"), ("compile", "-o", str(plan))):
        done = polymath(installed, arguments[0], str(spec), *arguments[1:])
        assert done.returncode == 0, done.stderr
    assert not witness.exists(), "checking a spec ran the package's code"
    job = json.loads((plan / "jobs/synthesize.json").read_text())
    assert job["settings"]["domains"]["lockers"]["settings"] == {"lockers": 50, "steps": 3, "seed": 0}
    assert len(job["inputs"]["world.lockers.code"]["digest"]) == 64

    done = polymath(installed, str(plan), "--job", "synthesize", module="polymath.runtime")
    assert done.returncode == 0, done.stderr
    assert witness.exists()
    (written,) = (tmp_path / "runs").rglob("lockers.default.jsonl")
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rows) == 20 and 0 < sum(row["reward"] for row in rows) < 20
    assert {message["role"] for message in rows[0]["messages"]} == {"user", "assistant", "tool"}

    module = installed / "lockers.py"
    text = module.read_text()
    module.write_text(text + "# a change\n")
    try:
        shutil.rmtree(tmp_path / "runs")
        done = polymath(installed, str(plan), "--job", "synthesize", module="polymath.runtime")
        assert done.returncode == 4 and "the code of world `lockers` has changed" in done.stderr, done.stderr
        done = polymath(installed, "diff", str(plan), str(spec))
        assert done.returncode == 2, done.stdout + done.stderr
    finally:
        module.write_text(text)


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ("{locker: 50}", "E0201", "did you mean `lockers`?"),
        ("{lockers: many}", "E0202", "'many' is not of type 'integer'"),
        ("{lockers: 1}", "E0205", "less than the minimum"),
    ],
)
def test_a_mistake_in_the_settings_of_an_installed_world_is_shown_where_it_is(
    installed: Path, tmp_path: Path, settings: str, code: str, said: str
) -> None:
    spec = tmp_path / "lockers.yaml"
    spec.write_text(SPEC.replace("{lockers: 50}", settings))
    done = polymath(installed, "validate", str(spec))
    assert done.returncode == 3 and re.search(rf"lockers\.yaml:14:\d+: error\[{code}\]", done.stderr), done.stderr
    assert said in done.stderr


def test_a_schema_that_cannot_be_read_is_the_packages_fault(installed: Path, tmp_path: Path) -> None:
    spec, schema = tmp_path / "lockers.yaml", installed / "lockers.schema.json"
    spec.write_text(SPEC)
    text = schema.read_text()
    schema.write_text("{")
    try:
        done = polymath(installed, "validate", str(spec))
    finally:
        schema.write_text(text)
    assert done.returncode == 5 and "lockers.schema.json that cannot be read" in done.stderr and "Traceback" not in done.stderr
