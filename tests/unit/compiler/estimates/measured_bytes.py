"""Prints the tensor bytes of a real forward and backward pass of this product's model, by category, as torch's tracker sees them.

    torchrun --nproc-per-node 2 measured_bytes.py CONFIG_FOLDER '[{"compute": "bfloat16", "checkpointing": "none"}, ...]'

The model is sharded by torchtitan with FSDP2; it is filled with noise, since bytes do not depend on values. Rank 0 prints one line
of JSON. The tracker of torch 2.13 knows modules with one group of parameters only, so there is no expert parallelism here.
"""

import json
import os
import sys
from pathlib import Path

import polymath.runtime.trainer  # prepares torchtitan's import
import torch
import torch.distributed as dist
from polymath.runtime.trainer.attention import document_layout
from polymath.runtime.trainer.model import model_spec
from polymath.specs.machine import ExpertPrecision
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import default_adamw
from torchtitan.config import CommConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed import utils as titan_distributed
from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC
from torchtitan.trainer import Trainer

assert polymath.runtime.trainer
CHECKPOINTING = {"none": None, "selective": SelectiveAC.Config(), "full": FullAC.Config()}
ROWS, SEQUENCE_TOKENS = 2, 192


def measure(folder: Path, dims: ParallelDims, compute: str, experts: str, checkpointing: str) -> dict[str, float]:
    """Bytes at the moments when each category is complete."""
    spec = model_spec(folder, experts=ExpertPrecision(format=experts))  # type: ignore[arg-type]
    config = Trainer.Config(
        model_spec=spec,
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=1e-4),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),
        training=TrainingConfig(
            seq_len=SEQUENCE_TOKENS, local_batch_size=ROWS, mixed_precision_param=compute, disable_cuda_graphs=True
        ),
        activation_checkpoint=CHECKPOINTING[checkpointing],
    )
    spec.model.update_from_config(config=config)
    with torch.device("meta"):
        model = spec.model.build()
    model = spec.parallelize_fn(
        model,
        parallel_dims=dims,
        training=config.training,
        parallelism=config.parallelism,
        compile_config=config.compile,
        ac_config=config.activation_checkpoint,
        dump_folder="unused",
    )
    model.to_empty(device="cpu")
    model.init_weights(buffer_device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            (parameter.to_local() if isinstance(parameter, DTensor) else parameter).normal_(0, 0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)

    tokens = torch.randint(0, spec.model.vocab_size, (ROWS, SEQUENCE_TOKENS))
    positions = torch.arange(SEQUENCE_TOKENS).repeat(ROWS, 1)
    found: dict[str, float] = {}
    tracker = FSDPMemTracker(model, optimizer)

    def now(*names: str, at: str = "current") -> float:
        snapshot = next(snap for device, snap in tracker.get_tracker_snapshot(at).items() if device.type == "cpu")
        return sum(bytes for category, bytes in snapshot.items() if str(getattr(category, "value", category)) in names)

    with tracker:
        logits = model(tokens, positions=positions, attention_masks=document_layout(torch.zeros_like(tokens)))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="sum") / tokens.numel()
        del logits
        found["activations"] = now("Activation")
        loss.backward()
        found["gradients"] = now("Sharded Grad")
        found["peak"] = now("Total", at="peak") - now("OptState", at="peak")
        optimizer.step()
        optimizer.zero_grad()
        found["parameters"] = now("Sharded Param")
        found["optimizer"] = now("OptState")
        found["buffers"] = now("Buffer")
    return found


def main() -> None:
    torch.set_num_threads(1)
    dims = ParallelDims.from_config(
        ParallelismConfig(spmd_backend="partial_dtensor"), titan_distributed.init_distributed(CommConfig(trace_buf_size=0))
    )
    titan_distributed.set_spmd_backend("partial_dtensor")
    dims.build_mesh()
    found = [measure(Path(sys.argv[1]), dims, **case) for case in json.loads(sys.argv[2])]
    if os.environ["RANK"] == "0":
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # as every rank of a job ends: gloo's threads do not always outlive Python's shutdown


if __name__ == "__main__":
    main()
