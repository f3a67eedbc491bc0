"""The plan's settings reach torchtitan's config, or are refused."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from polymath.compiler.driver import compile_spec
from polymath.compiler.plan import Override
from polymath.runtime.trainer.build import base_config
from polymath.runtime.trainer.overrides import apply_overrides
from polymath.specs.diagnostics import ExitCode, UserError

SMOKE = Path(__file__).parents[4] / "recipes" / "smoke.yaml"


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


def test_the_installed_torchtitan_has_every_setting_that_the_compiler_writes(tmp_path: Path) -> None:
    plan = compile_spec(SMOKE, tmp_path / "plan")
    trained = [job for job in plan.jobs if job.kind in ("sft", "grpo", "distill")]
    assert {job.kind for job in trained} == {"sft", "grpo", "distill"}
    for job in trained:
        config = base_config()
        apply_overrides(config, job.titan)
        assert config.training.seq_len == 128
        assert config.parallelism.expert_parallel_degree == 2
        assert None not in config.optimizer.param_groups[0].optimizer_kwargs.values()
