#!/usr/bin/env bash
# Builds the wheel, installs it with its dependencies into an empty environment and uses it far from the source tree.
set -euo pipefail
python=$(realpath "$1")
source_tree=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy, so that no leftover of an earlier build can stand in for a file the wheel forgot.
git -C "$source_tree" ls-files -z --cached --others --exclude-standard | (cd "$source_tree" && xargs -0 cp --parents -t "$work/" 2>/dev/null || true)
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$work/dist" "$work"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -c "$source_tree/constraints.txt" "$work"/dist/polymath-*.whl

cd "$work" && rm -rf specs compiler runtime te_kernels recipes
"$work/venv/bin/polymath" init mine.yaml
"$work/venv/bin/polymath" validate mine.yaml
"$work/venv/bin/polymath" compile mine.yaml -o plan
"$work/venv/bin/python" - <<'PY'
import importlib.util, pathlib, pkgutil, polymath.specs, polymath.compiler, polymath.runtime, polymath.te_kernels
missing = []
for package in (polymath.specs, polymath.compiler, polymath.runtime):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            missing.append(f"{module.name}: {error}")
assert not missing, missing
print("wheel: every module imports")
PY
