"""The plan's settings reach torchtitan's config, or are refused."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from polymath.compiler.plan import Override
from polymath.runtime.trainer.overrides import apply_overrides
from polymath.specs.diagnostics import ExitCode, UserError


@dataclass
class Group:
    keywords: dict[str, Any] = field(default_factory=lambda: {"lr": 0.0, "betas": ()})


@dataclass
class Config:
    steps: int = 1
    groups: list[Group] = field(default_factory=lambda: [Group()])


def test_a_path_walks_fields_positions_and_keys() -> None:
    config = Config()
    overrides = [Override(path="steps", value=7), Override(path="groups.0.keywords.betas", value=[0.9, 0.98])]
    apply_overrides(config, overrides)
    assert config.steps == 7
    assert config.groups[0].keywords == {"lr": 0.0, "betas": (0.9, 0.98)}


@pytest.mark.parametrize("path", ["step", "groups.1.keywords.lr", "groups.0.keywords.rate", "steps.more"])
def test_a_setting_that_torchtitan_does_not_have_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=f"`{path}`") as caught:
        apply_overrides(Config(), [Override(path=path, value=1)])
    assert caught.value.exit_code == ExitCode.STALE
