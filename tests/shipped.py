"""The files of `recipes/`: specs, and sweeps over them."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "recipes"
SWEEPS = sorted(path for path in FOLDER.glob("*.yaml") if "\npolymath_sweep:" in path.read_text(encoding="utf-8"))
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if path not in SWEEPS)
