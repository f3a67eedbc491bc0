"""New weights that do not arrive at the engine as they left the trainer: rows W1 to W3 of the faults.

The server answers as vLLM's does. What the trainer says of the canary comes from the same weights in an embedded engine.
"""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from on_policy_runs import TOKENIZER
from polymath.runtime.engines import vllm_http
from polymath.runtime.engines.endpoint import Endpoint
from polymath.runtime.engines.protocol import EngineSilent
from polymath.runtime.engines.shared import write_weights
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.vllm_http import HttpEngine
from polymath.runtime.parity import canary_of, engine_logprobs, require_parity
from polymath.specs.diagnostics import ExitCode, UserError
from polymath.specs.machine import ExpertPrecision, Precision
from scripted_engine import ScriptedEngine, served
from transformers import Qwen3MoeForCausalLM
from weight_streams import weights_of

FLOAT32 = Precision(compute="float32", experts=ExpertPrecision(format="float32"))
CANARY = canary_of(TOKENIZER.valid_ids, 48, seed=0)


@pytest.fixture
def server(models: Mapping[str, Path]) -> ScriptedEngine:
    return ScriptedEngine(models["a"])


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """What the client takes for the server's process."""
    with subprocess.Popen(["sleep", "600"]) as found:
        yield found
        found.kill()


@pytest.fixture
def engine(server: ScriptedEngine, process: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[HttpEngine]:
    with served(server) as url:
        port = int(url.split(":")[2].split("/")[0])
        endpoint = Endpoint(host="127.0.0.1", port=port, path="/v1", secure=False, key=None)
        (tmp_path / "log").touch()
        rows = TOKENIZER.vocabulary_size
        yield HttpEngine(endpoint, pid=process.pid, log=tmp_path / "log", vocabulary=rows, tokenizer=TOKENIZER)


@pytest.fixture
def update(models: Mapping[str, Path], tmp_path: Path) -> Path:
    """The weights of model `b`, as the trainer hands them over."""
    write_weights(weights_of(Qwen3MoeForCausalLM.from_pretrained(models["b"])), tmp_path / "update")
    return tmp_path / "update"


def _compare(engine: HttpEngine, folder: Path) -> None:
    """The gate after a sync to the weights of a folder."""
    trainer = TransformersEngine(folder, tokenizer_digest="", pad_id=0, invalid_ids=(), num_tokens=TOKENIZER.vocabulary_size)
    require_parity(engine_logprobs(engine, CANARY), engine_logprobs(trainer, CANARY), FLOAT32, engine.policy_version)


def _refused(engine: HttpEngine, folder: Path) -> None:
    with pytest.raises(UserError, match="it disagrees with the trainer on a canary") as caught:
        _compare(engine, folder)
    assert caught.value.exit_code == ExitCode.FAILED


def test_weights_that_arrive_pass_and_carry_their_version(engine: HttpEngine, models: Mapping[str, Path], update: Path) -> None:
    _compare(engine, models["a"])
    engine.reload(update, policy_version=3)
    _compare(engine, models["b"])
    assert engine.identity().policy_version == engine.policy_version == 3


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["dropped", "half"])
def test_an_update_that_did_not_arrive_whole_stops_the_run(
    engine: HttpEngine, server: ScriptedEngine, models: Mapping[str, Path], update: Path, share: float
) -> None:
    server.share_of_update = share
    engine.reload(update, policy_version=1)
    _refused(engine, models["b"])


def test_an_engine_that_dies_while_it_loads_keeps_its_earlier_version(
    engine: HttpEngine, server: ScriptedEngine, process: subprocess.Popen[bytes], models: Mapping[str, Path], update: Path
) -> None:
    def die(_: object) -> dict[str, object]:
        process.kill()
        process.wait()
        raise ConnectionError

    server._collective_rpc = die  # type: ignore[method-assign]
    with pytest.raises(UserError):
        engine.reload(update, policy_version=1)
    assert engine.policy_version == 0


def test_an_engine_that_hangs_while_it_loads_interrupts_the_run(
    engine: HttpEngine, server: ScriptedEngine, update: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay_seconds = 2.0
    monkeypatch.setattr(vllm_http, "ENDING_SECONDS", 0.1)
    monkeypatch.setattr(engine._once, "patience", replace(vllm_http.ONCE, answer_seconds=0.2, total_seconds=0.2))
    with pytest.raises(EngineSilent) as caught:
        engine.reload(update, policy_version=1)
    assert caught.value.exit_code == ExitCode.INTERRUPTED and engine.policy_version == 0


def test_a_prefix_cache_of_earlier_weights_is_never_taken_up(
    engine: HttpEngine, server: ScriptedEngine, models: Mapping[str, Path], update: Path
) -> None:
    server.cache = "salted"
    _compare(engine, models["a"])
    engine.reload(update, policy_version=1)
    _compare(engine, models["b"])  # the cache was not reset, and is under another version's name


def test_a_prefix_cache_that_is_taken_up_all_the_same_stops_the_run(
    engine: HttpEngine, server: ScriptedEngine, models: Mapping[str, Path], update: Path
) -> None:
    server.cache = "unsalted"
    _compare(engine, models["a"])
    engine.reload(update, policy_version=1)
    _refused(engine, models["b"])


def test_a_cache_that_is_not_reset_is_refused(
    engine: HttpEngine, server: ScriptedEngine, models: Mapping[str, Path], update: Path
) -> None:
    server.resets_cache = False
    with pytest.raises(UserError, match="kept its prefix cache") as caught:
        engine.reload(update, policy_version=1)
    assert caught.value.exit_code == ExitCode.FAILED and engine.policy_version == 0
