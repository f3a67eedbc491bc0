"""Who may import whom, read from the code itself; and what never comes with whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("specs", "compiler", "runtime", "te_kernels", "recipes")
COMPILER_FOR_RUNTIME = ("compiler.plan", "compiler.canonical")
TITAN_HOMES = ("runtime/trainer/", "runtime/checkpoints/", "te_kernels/converter.py")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, ours without `polymath.`; and whether inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {child for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix("polymath."), node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield (node.module or "").removeprefix("polymath."), node in inside
                continue
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.module:
                yield module, node in inside
            else:
                yield from ((f"{module}.{alias.name}" if module else alias.name, node in inside) for alias in node.names)


def is_ours(module: str) -> bool:
    return module.split(".")[0] in FOLDERS


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_imports_go_in_one_direction(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    folder = name.split("/")[0]
    for module, lazy in imports(path):
        if is_ours(module):
            target = module.split(".")[0]
            if folder == "specs" or folder == "te_kernels":
                assert target == folder, f"{name} imports {module}"
            elif folder == "compiler":
                assert target in ("specs", "compiler"), f"{name} imports {module}"
            elif folder == "runtime" and target == "compiler":
                allowed = any(module == one or module.startswith(f"{one}.") for one in COMPILER_FOR_RUNTIME)
                assert allowed or (name.startswith("runtime/verbs/") and lazy), f"{name} imports {module}"
        elif module.split(".")[0] == "torchtitan":
            assert name.startswith(TITAN_HOMES), f"{name} imports {module}"
        if folder in ("specs", "compiler"):
            assert module.split(".")[0] not in ("torch", "transformers", "torchtitan", "numpy"), f"{name} imports {module}"


def run(code: str, cwd: Path) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_validate_compile_and_lock_never_load_torch_or_other_slow_packages(tmp_path: Path) -> None:
    code = """
import sys
from polymath.runtime.cli import main
assert main(["init", "my.yaml"]) == 0
assert main(["validate", "my.yaml"]) == 0
slow = {"torch", "transformers", "torchtitan", "numpy", "jsonschema", "fsspec", "rich"} & set(sys.modules)
assert not slow, slow
assert main(["lock", "my.yaml"]) == 0
assert main(["compile", "my.yaml"]) == 0
slow = {"torch", "transformers", "torchtitan", "numpy"} & set(sys.modules)
assert not slow, slow
"""
    assert "is valid" in run(code, tmp_path)


def test_a_plan_is_read_without_the_passes(tmp_path: Path) -> None:
    code = """
import sys
import polymath.compiler.plan
assert not [name for name in sys.modules if name.startswith("polymath.compiler.passes")]
"""
    run(code, tmp_path)
