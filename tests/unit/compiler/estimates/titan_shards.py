"""Prints what torchtitan itself holds on one rank: its model on the meta device, sharded by its own `parallelize_fn` over a fake
process group. Nothing is allocated and nothing communicates.

    python titan_shards.py qwen3_5 35B-A3B '{"world": 256, "rank": 0, "expert": 8}'
"""

import collections
import importlib
import json
import os
import sys
import types


def stub_fla() -> None:
    """torchtitan's Qwen3.5 imports flash-linear-attention, which needs a GPU; shapes do not."""

    def module(name: str, **members: object) -> None:
        made = types.ModuleType(name)
        made.__path__ = []  # type: ignore[attr-defined]
        made.__dict__.update(members)
        sys.modules[name] = made

    import torch

    def function(name: str) -> type:
        return type(name, (torch.autograd.Function,), {"forward": staticmethod(lambda ctx, *given: None)})

    for name in ("fla", "fla.modules", "fla.modules.conv", "fla.modules.conv.triton", "fla.ops"):
        module(name)
    module("fla.modules.conv.triton.ops", CausalConv1dFunction=function("CausalConv1dFunction"))
    rule = "fla.ops.gated_delta_rule"
    module(rule, chunk_gated_delta_rule=None, fused_recurrent_gated_delta_rule=None)
    module(f"{rule}.chunk", ChunkGatedDeltaRuleFunction=function("ChunkGatedDeltaRuleFunction"))
    module(f"{rule}.fused_recurrent", FusedRecurrentFunction=function("FusedRecurrentFunction"))


def measure(package: str, flavor: str, layout: dict[str, int]) -> dict[str, object]:
    """Parameters in all and on a rank, by torchtitan's own count."""
    os.environ.update(NGPU=str(layout["world"]), RANK=str(layout.get("rank", 0)), LOCAL_RANK="0", WORLD_SIZE=str(layout["world"]))
    if package == "qwen3_5":
        stub_fla()
    import polymath.runtime.trainer  # prepares torchtitan's import
    import torch
    from torch.distributed.tensor import DTensor
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.components.optimizer import default_adamw
    from torchtitan.config import CommConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed import utils as titan_distributed
    from torchtitan.trainer import Trainer

    assert polymath.runtime.trainer
    spec = importlib.import_module(f"torchtitan.models.{package}").model_registry(flavor, moe_comm_backend="standard")
    parallelism = ParallelismConfig(
        expert_parallel_degree=layout.get("expert", 1),
        tensor_parallel_degree=layout.get("tensor", 1),
        data_parallel_replicate_degree=layout.get("replicate", 1),
        spmd_backend="partial_dtensor",
    )
    config = Trainer.Config(
        model_spec=spec,
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=1e-4),
        parallelism=parallelism,
        training=TrainingConfig(seq_len=4096, local_batch_size=1, disable_cuda_graphs=True),
        comm=CommConfig(mode="fake_backend"),
    )
    dims = ParallelDims.from_config(parallelism, titan_distributed.init_distributed(config.comm))
    titan_distributed.set_spmd_backend("partial_dtensor")
    dims.build_mesh()
    spec.model.update_from_config(config=config)
    with torch.device("meta"):
        model = spec.model.build()
    counts = collections.Counter({"all": sum(one.numel() for one in model.parameters())})
    for name, one in model.named_parameters():
        counts["vision"] += one.numel() * ("vision_encoder" in name)
        counts["experts"] += one.numel() * ("inner_experts" in name)
        counts["embedding"] += one.numel() * name.startswith("tok_embeddings")
    model = spec.parallelize_fn(
        model,
        parallel_dims=dims,
        training=config.training,
        parallelism=parallelism,
        compile_config=config.compile,
        ac_config=None,
        dump_folder="unused",
    )
    local = sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in model.parameters())
    buffers = sum(one.numel() * one.element_size() for one in model.buffers())
    return {"counts": counts, "local": local, "buffer_bytes": buffers}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
