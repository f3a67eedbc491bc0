"""Weights that vLLM's transfer engines take from the trainer: the whole sequence on a CPU, and every call against vLLM's sources.

NCCL and CUDA IPC need GPUs. Here vLLM's NCCL engines run on both sides, real workers receive, and gloo stands for the communicator.
"""

import ast
import inspect
import json
import os
import signal
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance.engines import Models, lacks, make_models
from end_to_end.polymath import REPOSITORY
from on_policy_runs import make_run
from polymath.compiler.plan import Role
from polymath.runtime.engines import transfer_words, vllm_http, vllm_process, vllm_transfer
from polymath.runtime.engines.protocol import EngineSilent, SamplingSettings
from polymath.runtime.engines.shared import SharedEngine
from polymath.runtime.engines.vllm import open_vllm
from polymath.runtime.engines.vllm_http import HttpEngine
from polymath.runtime.engines.vllm_launch import PYTHON, free_port
from polymath.runtime.engines.vllm_process import ProcessEngine
from polymath.runtime.engines.vllm_weights import WeightSync
from polymath.runtime.engines.weights import Unit, Weights
from polymath.specs.diagnostics import ExitCode
from polymath.specs.machine import Engines
from stand_in_worker import interpreter

from . import transfer_worker
from .transfer_worker import trainer_endpoint

pytestmark = pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or "")

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
SEQUENCE = [(7 * place + 5) % 300 for place in range(70)]
CLOSE = 1e-5
COPIES = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"), tied=True)


@pytest.fixture(scope="module", params=["process", "http"])
def shared(request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedEngine]:
    """Two copies of the first model, each in a process of its own, opened as a job on GPUs opens them for its only rank."""
    from vllm.distributed.weight_transfer import nccl_engine

    def trainer(rank: int, workers: int, weights: Any) -> Any:
        address = {"master_address": "127.0.0.1", "master_port": free_port(), "world_size": 1 + workers}
        return nccl_engine.NCCLTrainerInitInfo(rank=rank, packed=False, **address)  # packed buffers are CUDA's

    root = tmp_path_factory.mktemp("copies")
    role = Role(devices=1, torchrun=(), environment={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PYTHON, str(interpreter(root, transfer_worker.__file__)))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(nccl_engine, "open_trainer_endpoint", trainer_endpoint)
        patch.setattr(torch.cuda, "current_stream", lambda: None)
        patch.setitem(vllm_transfer.TRAINERS, "nccl", trainer)
        engines = Engines(rollout="vllm", transport=request.param)
        context = make_run(root, {"student": models.folders["first"]}, patch, engines=engines)
        settings = {**context.job.settings, "domains": {"one": {"limits": {"context_tokens": len(SEQUENCE) + 1}}}}
        roles = {"trainer": role, "rollout": replace(role, devices=COPIES, engine="vllm", weights="nccl")}
        context = replace(context, job=replace(context.job, settings=settings, roles=roles))
        with context.cleanup:
            yield open_vllm(context, "rollout", {"policy": models.folders["first"]}, models.tokenizer)["policy"]


@pytest.fixture(scope="module")
def copies(shared: SharedEngine) -> Sequence[ProcessEngine | HttpEngine]:
    """Each of them, to be asked what it says."""
    transfer = shared._transfer
    assert isinstance(transfer, vllm_transfer.Transfer)
    engines = transfer._copies._engines
    assert len(engines) == COPIES
    return [engine for engine in engines if isinstance(engine, ProcessEngine | HttpEngine)]


def _gap(engine: ProcessEngine | HttpEngine, models: Models, name: str) -> float:
    """Largest difference of the token scores from a plain forward pass, which those of a freshly loaded engine equal to 1e-5."""
    (scores_T,) = engine.score_tokens([SEQUENCE])
    expected_T = models.logprobs(name, SEQUENCE)[:-1].gather(1, torch.tensor(SEQUENCE[1:])[:, None]).squeeze(1)
    return (scores_T - expected_T).abs().max().item()


def test_every_copy_scores_with_the_weights_that_were_sent_and_tells_their_version(
    shared: SharedEngine, copies: Sequence[ProcessEngine | HttpEngine], models: Models
) -> None:
    for version, name in ((1, "second"), (2, "first"), (3, "second")):
        shared.load_weights(models.weights(name), policy_version=version)
        assert shared.policy_version == version
        for engine in copies:
            assert engine.identity().policy_version == version
            assert _gap(engine, models, name) < CLOSE


def test_no_cached_prefix_outlives_a_transfer(shared: SharedEngine, models: Models) -> None:
    for version, name in ((4, "first"), (5, "second")):
        shared.generate([SEQUENCE], limits=[1], sampling=GREEDY, stop_ids=[], seed=0)  # its blocks are cached now
        shared.load_weights(models.weights(name), policy_version=version)
        (written,) = shared.generate([SEQUENCE], limits=[1], sampling=GREEDY, stop_ids=[], seed=0)
        assert written.logprobs[0] == pytest.approx(models.logprobs(name, SEQUENCE)[-1].max().item(), abs=CLOSE)


def test_a_copy_that_hangs_while_weights_are_on_their_way_interrupts_the_run(
    shared: SharedEngine, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of the copies: one of them is stopped once some of the weights are sent."""
    monkeypatch.setattr(vllm_process, "PATIENCE", replace(vllm_process.PATIENCE, total_seconds=3.0))
    for copy in shared._transfer._copies._engines:  # type: ignore[attr-defined]
        if isinstance(copy, HttpEngine):
            monkeypatch.setattr(copy._once, "patience", replace(vllm_http.ONCE, answer_seconds=3.0, total_seconds=3.0))
    facts = json.loads(min((shared._context.folder / "engines").glob("*.json")).read_text())
    gathered: list[str] = []

    def stop(unit: Unit) -> Unit:
        gathered.extend(unit)
        if len(gathered) == 3:
            os.killpg(facts["pid"], signal.SIGSTOP)
        return unit

    weights = list(models.weights("first"))
    with pytest.raises(EngineSilent, match=r"no (step of it|answer) in") as caught:
        shared.load_weights(Weights([{name: tensor} for name, tensor in weights], stop), policy_version=6)
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert gathered[-len(weights) :] == [name for name, _ in weights]  # to the end, as the other ranks do
    assert shared.policy_version < 6


def _calls(module: str) -> list[ast.Call]:
    tree = ast.parse((REPOSITORY / "runtime" / "engines" / f"{module}.py").read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _bind(theirs: Any, call: ast.Call, *own: object) -> None:
    """Our call, as an error if their signature does not take it."""
    inspect.signature(theirs).bind(*own, *call.args, **{word.arg: word.value for word in call.keywords if word.arg})


def test_what_the_trainer_calls_exists_as_it_is_called() -> None:
    from vllm.distributed.weight_transfer import ParamMeta, WeightTransferEngineFactory, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    theirs = {
        "NCCLTrainerInitInfo": NCCLTrainerInitInfo,
        "IPCTrainerInitInfo": IPCTrainerInitInfo,
        "ParamMeta": ParamMeta,
        "trainer_init": WeightTransferTrainerFactory.trainer_init,
    }
    found = set()
    for call in _calls("vllm_transfer"):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in theirs:
            _bind(theirs[name], call)
            found.add(name)
    assert found == theirs.keys()
    assert {NCCLTrainerInitInfo.backend, IPCTrainerInitInfo.backend} == vllm_transfer.TRAINERS.keys()
    assert vllm_transfer.TRAINERS.keys() <= WeightTransferEngineFactory._registry.keys()  # of the workers' side


def test_what_the_worker_is_asked_exists_as_it_is_asked() -> None:
    from vllm.v1.worker.gpu_worker import Worker

    asked = set()
    for call in (*_calls("vllm_worker"), *_calls("vllm_http")):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name in ("collective_rpc", "_on_workers"):
            method, *values = [*call.args, *(one for word in call.keywords for one in getattr(word.value, "elts", []))]
            inspect.signature(getattr(WeightSync, ast.literal_eval(method))).bind(None, *values)
            asked.add(ast.literal_eval(method))
    assert asked == {"sync_weights", "transfer_weights"}
    used = set()
    for call in _calls("vllm_weights"):
        if (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and not hasattr(WeightSync, call.func.attr)
        ):
            _bind(getattr(Worker, call.func.attr), call, None)
            used.add(call.func.attr)
    steps = {"init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"}
    assert used == {"reload_weights"} | steps
    assert not [name for name in vars(WeightSync) if not name.startswith("__") and hasattr(Worker, name)]  # vLLM refuses that


def test_what_vllm_asks_of_the_trainer_is_there() -> None:
    from vllm.distributed.weight_transfer import VLLMWeightSyncClient, ipc_engine, nccl_engine

    for name, theirs in inspect.getmembers(VLLMWeightSyncClient, inspect.isfunction):
        if not name.startswith("_"):
            ours = getattr(vllm_transfer.Copies, name)
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    for side in (ipc_engine.IPCTrainerWeightTransferEngine, nccl_engine.NCCLTrainerWeightTransferEngine):
        tree = ast.parse(textwrap.dedent(inspect.getsource(side)))
        asked = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "source"
        }
        assert asked <= {"metadata"}, f"{side.__name__} asks more of a source of weights"


def test_the_handle_of_cuda_memory_goes_through_json() -> None:
    """As `reduce_tensor` makes it of the buffer that weights are packed into."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    buffer = torch.empty(4, dtype=torch.uint8)
    places = {
        "tensor_cls": type(buffer), "tensor_size": buffer.size(), "tensor_stride": buffer.stride(), "tensor_offset": 0,
        "storage_cls": type(buffer._typed_storage()), "dtype": buffer.dtype, "storage_device": 0, "storage_handle": b"\x00\xff",
        "storage_size_bytes": 2**21, "storage_offset_bytes": 0, "requires_grad": False, "ref_counter_handle": b"ref",
        "ref_counter_offset": 1, "event_handle": b"event", "event_sync_required": True,
    }  # fmt: skip
    assert list(places) == list(inspect.signature(rebuild_cuda_tensor).parameters)
    update = {"names": ["a"], "shapes": [[4]], "ipc_handles": {"GPU-1": tuple(places.values())}, "tensor_sizes": None}
    assert transfer_words.decoded(transfer_words.encoded(update)) == update
    with pytest.raises(TypeError, match="not known here"):
        transfer_words.encoded({"a": Path()})
