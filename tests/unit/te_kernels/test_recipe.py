"""Transformer Engine is looked for in one place, and what is wrong with it is said with what to do."""

import sys
from pathlib import Path

import pytest
from fp8_layers import recipe
from polymath.te_kernels.recipe import TransformerEngineMissing, load

META_PACKAGE = 'raise RuntimeError("Found empty `transformer-engine` meta package installed")'
NO_LIBRARY = 'raise FileNotFoundError("Could not find shared object file for Transformer Engine torch lib")'
WRONG_TORCH = 'assert False, "Minimum torch version 2.1 required"'
BROKEN = {"RuntimeError": META_PACKAGE, "FileNotFoundError": NO_LIBRARY, "AssertionError": WRONG_TORCH}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are imported from first."""
    for name in [name for name in sys.modules if name.startswith("transformer_engine")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def refusal(name: str = "fp8_blockwise") -> str:
    with pytest.raises(TransformerEngineMissing) as caught:
        load(recipe(name))
    return str(caught.value)


def test_where_it_is_missing_the_recipe_the_machine_and_the_install_line_are_named() -> None:
    pytest.importorskip("torch")
    message = refusal()
    for words in ("Float8BlockScaling", "no GPU", "it is not installed", "transformer-engine[core_cu13,pytorch]==2.20.2"):
        assert words in message, message


@pytest.mark.parametrize("error", BROKEN)
def test_a_broken_installation_is_said_in_its_own_words(installed: Path, error: str) -> None:
    package = installed / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN[error])
    message = refusal()
    assert f"{error}: " in message
    assert BROKEN[error].split('"')[1] in message


def test_a_version_without_the_recipe_is_too_old(installed: Path) -> None:
    common = installed / "transformer_engine" / "common" / "recipe"
    gemm = installed / "transformer_engine" / "pytorch" / "cpp_extensions"
    for folder in (common, gemm):
        folder.mkdir(parents=True)
    for folder in (common.parents[1], common.parent, gemm.parent, gemm):
        (folder / "__init__.py").touch()
    (common / "__init__.py").write_text(
        "class Format:\n    E4M3 = None\n    __class_getitem__ = classmethod(getattr)\nMMParams = dict"
    )
    (gemm / "gemm.py").touch()
    (gemm.parent / "quantization.py").touch()
    (installed / "transformer_engine_torch.py").touch()
    assert "has no attribute 'Float8BlockScaling'" in refusal()
