"""An engine in bfloat16 beside a model in bfloat16: within the gate's bound on the mean, far outside with other weights."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conformance.engines import Models, lacks, make_models, settings_of
from polymath.runtime.engines.handshake import Canary
from polymath.runtime.engines.protocol import Engine
from polymath.runtime.engines.shared import write_weights
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.vllm import connect, start_worker
from polymath.runtime.engines.vllm_process import ProcessEngine
from polymath.runtime.parity import Gap, canary_of, engine_logprobs, require_parity
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import ExpertPrecision, Precision

pytestmark = pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or "")

BFLOAT16 = Precision(compute="bfloat16", experts=ExpertPrecision(format="bfloat16"))
SEEDS = range(8)  # of canaries: a token may visit another expert, so that one canary alone says little


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"), tied=True)


@pytest.fixture(scope="module")
def engine(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessEngine]:
    root, folder = tmp_path_factory.mktemp("engine"), models.folders["first"]
    with ExitStack() as cleanup:
        copy = start_worker(dataclasses.replace(settings_of(folder), dtype="bfloat16"), root / "log", cleanup)
        copy.wait()
        found = connect(copy.facts, folder, models.tokenizer)
        assert isinstance(found, ProcessEngine)
        cleanup.callback(found.close)
        yield found


def _beside(models: Models, name: str) -> Engine:
    """The same weights in bfloat16, computed by transformers."""
    tokenizer = models.tokenizer
    return TransformersEngine(
        models.folders[name],
        tokenizer_digest=tokenizer.digest,
        pad_id=tokenizer.pad_id,
        invalid_ids=(),
        num_tokens=len(tokenizer.hf),
        dtype="bfloat16",
    )


def _gap(engine: Engine, other: Engine, models: Models, seed: int) -> Gap:
    canary = canary_of(models.tokenizer.valid_ids, 64, seed)
    return require_parity(engine_logprobs(engine, canary), engine_logprobs(other, canary), BFLOAT16, 0)


def _load(engine: ProcessEngine, models: Models, name: str, folder: Path, version: int) -> None:
    write_weights(models.weights(name), folder)
    engine.reload(folder, policy_version=version)


def test_it_stays_within_the_bound_before_and_after_new_weights(engine: ProcessEngine, models: Models, tmp_path: Path) -> None:
    for version, name in enumerate(("first", "second", "first")):
        if version:
            _load(engine, models, name, tmp_path / "weights", version)
        gaps = [_gap(engine, _beside(models, name), models, seed) for seed in SEEDS]
        print(f"{name}: mean {max(one.mean for one in gaps):.3f}, largest {max(one.largest for one in gaps):.3f}")
        canary = Canary.of_checkpoint(models.folders[name], models.tokenizer, "bfloat16", "the engine")
        assert canary.difference(engine) is None


def test_other_weights_are_far_outside_of_it(engine: ProcessEngine, models: Models, tmp_path: Path) -> None:
    _load(engine, models, "first", tmp_path / "weights", 3)
    for seed in SEEDS:
        with pytest.raises(UserError, match=r"the mean gap .* 0.25 is allowed") as caught:
            _gap(engine, _beside(models, "second"), models, seed)
        assert caught.value.exit_code == ExitCode.FAILED
