"""Plain data to dataclasses and back."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymath.specs import machine, model
from polymath.specs.build import build, from_json, kept, to_json
from polymath.specs.diagnostics import UserError
from polymath.specs.fields import Identity

GRPO = {"method": "grpo", "domains": ["a"], "steps": 3, "prompts": 2, "samples": 4, "sequence_tokens": 64, "learning_rate": 1}


def test_a_spec_block_survives_the_round_trip() -> None:
    phase = from_json(model.GrpoPhase, GRPO)
    assert from_json(model.GrpoPhase, to_json(phase)) == phase
    assert phase.learning_rate == 1.0 and isinstance(phase.learning_rate, float)


def test_keys_are_named_as_users_write_them() -> None:
    data = to_json(from_json(model.StudentSft, {"sequence_tokens": 8, "learning_rate": 1e-5, "epochs": 1, "batch_sequences": 2}))
    assert data["from"] == "base" and "start" not in data


def test_the_method_selects_the_kind_of_phase() -> None:
    teacher = from_json(model.Teacher, {"from": "base", "phases": [GRPO]})
    assert isinstance(teacher.phases[0], model.GrpoPhase)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({**GRPO, "steps": 2.0}, "whole number"),
        ({**GRPO, "steps": True}, "whole number"),
        ({**GRPO, "steps": None}, "whole number"),
        ({**GRPO, "learning_rate": float("nan")}, "a number"),
        ({**GRPO, "clip": [0.2]}, "list of 2"),
        ({**GRPO, "extra": 1}, "extra"),
        ({**GRPO, "domains": []}, "at least 1"),
        ({**GRPO, "samples": 1}, "at least 2"),
    ],
)
def test_data_that_does_not_fit_is_refused(data: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        from_json(model.GrpoPhase, data)


def test_true_is_not_the_version_one() -> None:
    with pytest.raises(ValueError, match="polymath"):
        from_json(model.Spec, {"polymath": True})


def test_only_one_identity_class_can_be_kept() -> None:
    checkpoint = kept(model.Checkpoint, to_json(model.Checkpoint()), (Identity.NUMERICS,))
    assert checkpoint == {}
    assert "learning_rate" in kept(model.GrpoPhase, to_json(from_json(model.GrpoPhase, GRPO)), (Identity.NUMERICS,))


def test_a_user_error_crosses_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(UserError("what", exit_code=5, fix="mend")))
    assert (error.message, error.exit_code, error.fix) == ("what", 5, "mend")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["method", "domains", "sft", "from", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.sampled_from([model.Spec, model.Teacher, model.Domain, model.Evaluate, machine.TrainerPlacement]))
def test_no_data_makes_the_builder_fail(data: object, cls: type) -> None:
    value, problems = build(cls, data)
    assert problems or isinstance(value, cls)
