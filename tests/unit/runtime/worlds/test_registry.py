"""Worlds that packages bring."""

from pathlib import Path

import pytest
from polymath.runtime.worlds.registry import make_world
from polymath.specs.diagnostics import ExitCode, UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings two worlds, one of them broken."""
    (tmp_path / "maze_world.py").write_text("def build(settings):\n    return ('a maze', settings)\n")
    metadata = tmp_path / "maze_world-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: maze_world\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[polymath.worlds]\nmaze = maze_world:build\nhole = maze_world:nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("package")
def test_a_package_can_bring_a_world() -> None:
    assert make_world("maze", {"size": 3}) == ("a maze", {"size": 3})


@pytest.mark.usefixtures("package")
def test_a_brought_world_is_suggested_too() -> None:
    with pytest.raises(UserError) as mistake:
        make_world("mase", {})
    assert mistake.value.fix == "did you mean `maze`?"


@pytest.mark.usefixtures("package")
def test_a_brought_world_that_does_not_load_is_named() -> None:
    with pytest.raises(UserError, match="maze_world:nothing") as mistake:
        make_world("hole", {})
    assert mistake.value.exit_code == ExitCode.UNFIT
