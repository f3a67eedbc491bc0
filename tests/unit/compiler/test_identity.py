"""One recipe, one plan: the same bytes from everywhere and for everyone, and digests that know what matters."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.plan import Plan
from shipped import RECIPES

ROOT = Path(__file__).parents[3]
SPECS = [path for path in RECIPES if path.stem != "airline"]  # which wants users' data
SMOKE = ROOT / "recipes" / "smoke.yaml"
# Another user, who may read what root may: the interpreter often lies in root's own folder.
NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)

COMPILE = """
import sys
from pathlib import Path
from polymath.runtime.cli import main
folder, *specs = sys.argv[1:]
for spec in specs:
    assert main(["compile", spec, "-o", str(Path(folder) / Path(spec).stem)]) == 0
"""
PLACES: dict[str, dict[str, str]] = {
    "here": {"PYTHONHASHSEED": "0"},
    "ASCII": {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"},
    "UTF-8": {"PYTHONHASHSEED": "4242", "LC_ALL": "C.UTF-8", "TZ": "America/St_Johns"},
    "German": {"PYTHONHASHSEED": "77", "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Europe/Berlin"},
    "somebody else": {"PYTHONHASHSEED": "random", "HOME": "/nonexistent", "USER": "mallory", "LOGNAME": "mallory", "COLUMNS": "20"},
}


@pytest.fixture
def world_readable() -> Iterator[Path]:
    """A folder that every user of the machine may write to."""
    folder = Path(tempfile.mkdtemp(prefix="polymath-identity-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def plan_bytes(folder: Path) -> dict[str, bytes]:
    """Everything that a plan promises to be identical: all of it but where the inputs lie on this machine."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if not name.endswith("/sources.json")}


def compile_in(
    folder: Path, specs: list[str], environment: dict[str, str], cwd: Path, user: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*user, sys.executable, "-c", COMPILE, str(folder), *specs],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_recipe_compiles_to_the_same_bytes_everywhere(world_readable: Path) -> None:
    seen: dict[str, dict[str, bytes]] = {}
    for number, (name, environment) in enumerate(PLACES.items()):
        folder = world_readable / str(number)
        cwd = (ROOT, Path("/"), world_readable)[number % 3]
        specs = [os.path.relpath(recipe, cwd) if number % 2 else str(recipe) for recipe in SPECS]
        done = compile_in(folder, specs, environment, cwd)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        seen[name] = plan_bytes(folder)
    for name, found in seen.items():
        assert found.keys() == seen["here"].keys()
        assert [file for file, content in found.items() if content != seen["here"][file]] == [], name


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user")
def test_another_user_compiles_to_the_same_bytes(world_readable: Path) -> None:
    mine, theirs = world_readable / "mine", world_readable / "theirs"
    specs = [str(recipe) for recipe in SPECS]
    assert compile_in(mine, specs, {}, world_readable).returncode == 0
    done = compile_in(theirs, specs, {"HOME": "/nonexistent", "USER": "nobody"}, world_readable, user=NOBODY)
    if "ambient" in done.stderr:  # a container that may not hand on capabilities
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert theirs.stat().st_uid == 65534
    assert plan_bytes(theirs) == plan_bytes(mine)


def test_a_plan_names_no_place_machine_user_or_time(world_readable: Path) -> None:
    environment = {"HOME": "/home/mallory-home", "USER": "mallory-user", "LOGNAME": "mallory-user"}
    copies = world_readable / "copied-recipes"
    shutil.copytree(ROOT / "recipes", copies)
    done = compile_in(world_readable / "plans", [str(copies / recipe.name) for recipe in SPECS], environment, ROOT)
    assert done.returncode == 0, done.stderr
    for name, content in plan_bytes(world_readable / "plans").items():
        for word in (str(world_readable), "mallory", socket.gethostname(), str(ROOT), str(Path.home()) + "/"):
            assert word.encode() not in content, f"{name} holds {word}"


def compiled(folder: Path, text: str, *overrides: str) -> Plan:
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return compile_spec(folder / "spec.yaml", folder / "plan", overrides)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("learning_rate: 4e-3", "learning_rate: 0.004"),
        ("learning_rate: 4e-3", "learning_rate: 4.0E-03"),
        ("habit_rate: 0.65", "habit_rate: .65"),
        ("seed: 11", "seed: 11   # lucky"),
        ("name: smoke\nseed: 11", "seed: 11\nname: smoke"),
        ("routing:\n  - {domains: [tools], teacher: operator}\n", "routing:\n  - teacher: operator\n    domains:\n      - tools\n"),
        (
            "  - {domains: [tools], teacher: operator}\n  - {domains: [instructions], teacher: instructor}\n",
            "  - {domains: [instructions], teacher: instructor}\n  - {domains: [tools], teacher: operator}\n",
        ),
        ("world: tools", "world: 'tools'"),
        ("    trajectories:\n", "    settings: {}\n    trajectories:\n"),
        ("keep: 2}\n", "keep: 2}\n\n# what follows is not trained on\n"),
    ],
    ids=[
        "0.004",
        "exponent",
        "leading dot",
        "comment",
        "order of keys",
        "block style",
        "order of rules",
        "quotes",
        "default",
        "line",
    ],
)
def test_how_a_spec_is_written_changes_no_digest(tmp_path: Path, old: str, new: str) -> None:
    text = SMOKE.read_text()
    assert old in text
    before, after = compiled(tmp_path, text), compiled(tmp_path, text.replace(old, new, 1))
    assert (after.recipe_digest, after.exact_digest) == (before.recipe_digest, before.exact_digest)
    assert after == before


@pytest.mark.parametrize(
    "override",
    ["placement.sft.trainer.expert=1", "placement.sft.trainer.replicate=2", "placement.distill.trainer.micro_batch=1"],
)
def test_another_mesh_is_another_computation_of_the_same_recipe(tmp_path: Path, override: str) -> None:
    text = SMOKE.read_text()
    changes = [override] if "replicate" not in override else [override, "placement.sft.trainer.expert=1"]
    before, after = compiled(tmp_path, text), compiled(tmp_path, text, *changes)
    assert after.recipe_digest == before.recipe_digest
    assert after.exact_digest != before.exact_digest


def test_another_learning_rate_is_another_recipe(tmp_path: Path) -> None:
    text = SMOKE.read_text()
    assert compiled(tmp_path, text, "student.sft.learning_rate=3e-3").recipe_digest != compiled(tmp_path, text).recipe_digest
