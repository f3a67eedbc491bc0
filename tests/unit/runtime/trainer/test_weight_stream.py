"""Weights on their way to an engine: every name and value of the whole model, on one rank and on two, and never all at once."""

import gc
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from polymath.runtime.data.tokenizers import load_tokenizer
from polymath.runtime.engines import weights as streams
from polymath.runtime.engines.shared import gather_with_others, write_weights
from polymath.runtime.engines.transformers_engine import TransformersEngine
from polymath.runtime.engines.weights import Unit, Weights
from polymath.runtime.stages.import_model import write_random_model
from polymath.runtime.trainer.model import family_of, model_spec, transformers_weights
from polymath.specs.machine import ExpertPrecision
from polymath.specs.model import HybridShape, Model, ModelShape
from ranks import RANKS, on_ranks
from torch import Tensor, nn
from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.utils import set_spmd_backend
from torchtitan.protocols.model_spec import ModelSpec
from weight_streams import read_folder

LAYERS = 12
HYBRID = HybridShape(
    full_attention_every=2, key_heads=1, value_heads=2, key_head_dim=32, value_head_dim=32, rotary_dim=8, shared_expert_hidden=16
)
SHAPES = {"qwen3_moe": None, "qwen3_5_moe": HYBRID}


def _folder(path: Path, family: str) -> Path:
    """A random model with tied embeddings, whose largest weight is a small part of it."""
    shape = ModelShape(
        hidden=32, layers=LAYERS, heads=4, kv_heads=2, head_dim=32, experts=8, experts_per_token=2, expert_hidden=32,
        context_tokens=64, tied_embeddings=True, hybrid=SHAPES[family],
    )  # fmt: skip
    write_random_model(
        path, shape, load_tokenizer(Model(family=family, checkpoint="random", tokenizer="builtin:bytes", shape=shape)), 5
    )
    return path


def _model(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """The same on every rank, not sharded."""
    set_spmd_backend("partial_dtensor")
    torch.manual_seed(3)
    spec = model_spec(folder, experts=ExpertPrecision(format="float32"))
    model = spec.model.build()
    model.init_weights(buffer_device=None)
    return model, spec


def _sharded(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """FSDP2 over two ranks, with experts that are parallel over the same two."""
    parallelism = ParallelismConfig(expert_parallel_degree=RANKS, spmd_backend="partial_dtensor")
    return spec.parallelize_fn(
        model,
        parallel_dims=ParallelDims.from_config(parallelism, RANKS),
        training=TrainingConfig(),
        parallelism=parallelism,
        compile_config=CompileConfig(),
        ac_config=None,
        dump_folder="",
    )


def _whole(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """All weights of a model that is not sharded, at once: what a stream must amount to."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = family_of(spec.name).transformers_weights(weights, spec.model)
    return {name: tensor for name, tensor in found.items() if name != "lm_head.weight"}  # it is tied


def _engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder, tokenizer_digest="", pad_id=0, invalid_ids=(), num_tokens=300)


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def _compare(folder: Path, scratch: Path, weights: Weights, expected: Mapping[str, Tensor], rank: int = 0) -> None:
    """What is told of them, what a pass gives, what an embedded engine takes and what a folder holds."""
    assert [(name, one.shape, one.dtype) for name, one in weights.described().items()] == [
        (name, one.shape, one.dtype) for name, one in weights
    ]
    _same(dict(weights), expected)
    engine = _engine(folder)
    engine.load_weights(weights, policy_version=1)
    _same({name: one.detach() for name, one in engine._model.named_parameters()}, expected)
    if rank:
        gather_with_others(weights)
    else:
        write_weights(weights, scratch / "weights")
        _same(read_folder(scratch / "weights"), expected)


def _most_bytes(weights: Weights, folder: Path) -> int:
    """Of tensors that were made for a sync and are alive at the same time, while a unit is gathered, converted or taken."""
    engine, most = _engine(folder), 0
    gather, convert = streams._gathered, weights._convert
    gc.collect()
    gc.freeze()  # what is there already is not looked at again

    def look() -> None:
        nonlocal most
        storages = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in gc.get_objects() if type(one) is Tensor
        }
        most = max(most, sum(size for place, size in storages.items() if place not in own))

    def gathered(tensor: Tensor) -> Tensor:
        found = gather(tensor).clone()  # without sharding it would be the model's own memory
        look()
        return found

    def converted(unit: Unit) -> Mapping[str, Tensor]:
        found = convert(unit)
        look()
        return found

    own = {parameter.data_ptr() for parameter in engine._model.parameters()}
    streams._gathered, weights._convert = gathered, converted  # type: ignore[assignment]
    try:
        engine.load_weights(weights, policy_version=2)
    finally:
        streams._gathered, weights._convert = gather, convert
        gc.unfreeze()
    return most


def _stays_small(folder: Path, weights: Weights) -> None:
    sizes = [tensor.nbytes for tensor in weights.described().values()]
    assert sum(sizes) > 10 * max(sizes)
    assert max(sizes) <= _most_bytes(weights, folder) <= 3.5 * max(sizes)  # parts, joined, and once more in another layout


@pytest.mark.parametrize("family", SHAPES)
def test_on_one_rank_every_consumer_gets_every_weight_and_none_holds_more_than_a_unit(family: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model", family)
    model, spec = _model(folder)
    weights = transformers_weights(model, spec)
    _compare(folder, tmp_path, weights, _whole(model, spec))
    _stays_small(folder, weights)


def _compare_sharded(rank: int, folder: Path, scratch: Path) -> None:
    model, spec = _model(folder)
    expected = _whole(model, spec)
    weights = transformers_weights(_sharded(model, spec), spec)
    _compare(folder, scratch, weights, expected, rank)
    _stays_small(folder, weights)


@pytest.mark.multi_rank
@pytest.mark.parametrize("family", SHAPES)
def test_on_two_ranks_they_are_those_of_one(family: str, tmp_path: Path) -> None:
    on_ranks(_compare_sharded, tmp_path, _folder(tmp_path / "model", family), tmp_path)
