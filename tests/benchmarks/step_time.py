"""A step of our trainer beside a step of torchtitan's own: the same weights, rows and layout, every step in turn.

    python tests/benchmarks/step_time.py [--pairs 40] [--ranks 1] [--vocabulary 16384] [--written 1.0]

Either trainer runs its own `train()` in processes of its own, one thread each. At every boundary of a step it waits for its turn,
so that what else the machine does meets both; the order within a pair alternates. A step is all that the loop does: fetching the
batch, forward and backward passes, clipping, the check for finite numbers, the optimizer, metrics, and whether to save or to stop.
The stock trainer has torchtitan's attention, head, cross-entropy, optimizers, metrics and checkpoint manager; the float32 experts
are ours in both, because torchtitan's compute in bfloat16 only. A row is one document: torchtitan's attention on a CPU knows no
others.

Printed are the medians, and the median of the pairs' ratios with its 95 % bootstrap interval, in CPU time of the processes (all
ranks) and on the clock.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"
WAYS = ("ours", "stock")
WARM_UP = 3  # steps of either that are not counted
ROWS, ROW_TOKENS = 4, 256  # of a rank's step
SHAPE = {
    "hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "experts": 8, "experts_per_token": 2,
    "expert_hidden": 256, "context_tokens": ROW_TOKENS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What both trainers train."""

    ranks: int
    pairs: int
    vocabulary: int
    written: float  # share of the tokens that are trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of one rank. Losses are those of the global batch."""

    cpu_seconds: float
    seconds: float
    loss: float


def measure(case: Case) -> dict[str, list[list[Step]]]:
    """The steps of either way, all ranks of each."""
    steps: dict[str, list[list[Step]]] = {way: [] for way in WAYS}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        _write_start(Path(scratch, "start"), case)
        turns: dict[str, list[Connection]] = {way: [] for way in WAYS}
        processes = []
        for way in WAYS:
            for rank in range(case.ranks):
                here, there = spawn.Pipe()
                turns[way].append(here)
                process = spawn.Process(target=_train, args=(way, rank, case, Path(scratch), there), daemon=True)
                process.start()
                processes.append(process)
        for number in range(WARM_UP + case.pairs):
            for way in WAYS if number % 2 else reversed(WAYS):
                for turn in turns[way]:
                    turn.send("go")
                steps[way].append([turn.recv() for turn in turns[way]])
        for process in processes:
            process.terminate()
            process.join()
    return {way: found[WARM_UP:] for way, found in steps.items()}


def _write_start(folder: Path, case: Case) -> None:
    """Random weights in a Hugging Face folder."""
    import torch
    from polymath.runtime.data.tokenizers import load_tokenizer
    from polymath.runtime.stages.random_config import transformers_config
    from polymath.specs.model import Model, ModelShape
    from transformers import Qwen3MoeForCausalLM

    tokenizer = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer="builtin:tiny-words"))
    config = transformers_config(ModelShape(**SHAPE), tokenizer)
    config.vocab_size = case.vocabulary
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(folder, save_original_format=True)
    tokenizer.save(folder)


def _train(way: str, rank: int, case: Case, scratch: Path, turn: Connection) -> None:
    """Train for ever, one step for every "go" of the other end."""
    port = scratch / f"rendezvous-{way}"
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _agreed_port(port, rank)}
    import torch
    from polymath.runtime.jobs import JobContext
    from polymath.runtime.stages.sft import SftStage
    from polymath.runtime.trainer.build import start_distributed, trainer_config
    from polymath.specs.model import StudentSft

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    context = _context(way, rank, case, scratch)
    JobContext.input_folder = lambda _, name: scratch / "start"
    data = _data(case)
    stage = SftStage(data, steps=WARM_UP + case.pairs + 1, report={})
    start_distributed()
    config = trainer_config(context, context.setting("stage", StudentSft), steps=stage.steps)
    trainer = config.build() if way == "ours" else _stock_config(config, data).build()
    boundary = partial(_boundary, turn, {}, trainer.should_continue_training)
    trainer.should_continue_training = boundary
    trainer.metrics_processor.log = partial(_log, boundary.args[1], trainer.metrics_processor.log)
    if way == "ours":
        trainer.run(stage, context)
    else:
        trainer.train()


def _agreed_port(file: Path, rank: int) -> str:
    """A free port that the first rank finds and the others read."""
    if rank:
        while not file.exists():
            time.sleep(0.05)
        return file.read_text()
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    file.with_suffix(".new").write_text(port)
    file.with_suffix(".new").rename(file)
    return port


def _log(state: dict[str, float], log: Any, step: int, loss: float, *rest: Any, **more: Any) -> None:
    state["loss"] = loss
    log(step, loss, *rest, **more)


def _boundary(turn: Connection, state: dict[str, float], may_continue: Any) -> bool:
    """Between two steps: tell of the one that is over, and wait for the next turn."""
    if state:
        cpu_seconds, seconds = time.process_time() - state["cpu"], time.perf_counter() - state["clock"]
        turn.send(Step(cpu_seconds=cpu_seconds, seconds=seconds, loss=state["loss"]))
    turn.recv()
    state |= {"cpu": time.process_time(), "clock": time.perf_counter()}
    return may_continue()


def _context(way: str, rank: int, case: Case, scratch: Path) -> Any:
    """An SFT job of the smoke recipe with this case's rows and ranks."""
    from polymath.compiler import api
    from polymath.compiler.plan import Sources
    from polymath.runtime.jobs import JobContext

    mesh = [f"placement.{kind}.trainer.{name}" for kind in ("sft", "grpo", "distill") for name in ("devices", "expert")]
    changes = {
        "cluster.per_node": case.ranks,
        **{name: case.ranks if name.endswith("devices") else 1 for name in mesh},
        **{f"model.shape.{name}": value for name, value in SHAPE.items()},
        "model.shape.tied_embeddings": "false",
        "student.sft.sequence_tokens": ROW_TOKENS,
        "student.sft.batch_sequences": ROWS * case.ranks,
        "student.sft.steps": WARM_UP + case.pairs + 1,
        "placement.sft.trainer.micro_batch": ROWS // 2,
        "checkpoint.every_steps": 100_000,
    }
    plan = api.compile(RECIPE, overrides=[f"{name}={value}" for name, value in changes.items()])
    sources = Sources(spec_folder="", runs="", urls={})
    context = JobContext(
        plan=plan,
        sources=sources,
        job=plan.job("sft"),
        run_dir=scratch / way,
        rank=rank,
        world_size=case.ranks,
        barrier=lambda: None,
    )
    context.folder.mkdir(parents=True, exist_ok=True)
    return context


def _data(case: Case) -> Any:
    """Documents as long as a row."""
    import torch
    from polymath.runtime.data.batch import Document
    from polymath.runtime.data.sft_data import SftData

    generator = random.Random(0)
    documents = []
    for _ in range(64):
        ids = tuple(generator.randrange(case.vocabulary) for _ in range(ROW_TOKENS + 1))
        written = tuple(generator.random() < case.written for _ in ids)
        documents.append(Document(ids=ids, written=written, weight_T=torch.tensor(written[1:], dtype=torch.float32)))
    return SftData(documents, ROW_TOKENS, ROWS * case.ranks, seed=0)


def _stock_config(ours: Any, data: Any) -> Any:
    """torchtitan's own trainer with our settings."""
    import torch.distributed as dist
    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import OptimizersContainer
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.common.linear import Linear
    from torchtitan.trainer import Trainer

    def as_stock(kind: Any, config: Any, **changes: Any) -> Any:
        return kind(**{one.name: getattr(config, one.name) for one in fields(kind)} | changes)

    class Rows(BaseDataLoader):
        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            pass

        def __init__(self, config: Config, **kwargs: Any) -> None:
            self.micro_rows = kwargs["local_batch_size"]

        def __iter__(self) -> Iterator[Any]:
            for step in range(1, 1_000_000):
                batch = data.batch(step)
                first = ROWS * dist.get_rank()
                for start in range(first, first + ROWS, self.micro_rows):
                    rows = slice(start, start + self.micro_rows)
                    yield {"input": batch.tokens_BL[rows], "positions": batch.positions_BL[rows]}, batch.labels_BL[rows]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pass

    model = ours.model_spec.model
    model.lm_head = as_stock(Linear.Config, model.lm_head)
    for layer in model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return as_stock(
        Trainer.Config,
        ours,
        dataloader=Rows.Config(),
        loss=CrossEntropyLoss.Config(),
        optimizer=as_stock(OptimizersContainer.Config, ours.optimizer),
        metrics=as_stock(MetricsProcessor.Config, ours.metrics),
        checkpoint=as_stock(CheckpointManager.Config, ours.checkpoint),
    )


def interval(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of their median."""
    generator = random.Random(0)
    medians = sorted(median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]


def summary(steps: dict[str, list[list[Step]]]) -> dict[str, Any]:
    """Medians and ratios, by CPU time and by the clock, and how far the losses are apart."""
    found: dict[str, Any] = {}
    clocks: dict[str, Callable[[list[Step]], float]] = {
        "cpu": lambda ranks: sum(one.cpu_seconds for one in ranks),
        "clock": lambda ranks: max(one.seconds for one in ranks),
    }
    for name, of in clocks.items():
        values = {way: [of(ranks) for ranks in steps[way]] for way in WAYS}
        ratios = [ours / stock for ours, stock in zip(values["ours"], values["stock"], strict=True)]
        low, high = interval(ratios)
        found[name] = {
            **{way: round(median(values[way]), 4) for way in WAYS},
            "ratio": round(median(ratios), 4),
            "interval": [round(low, 4), round(high, 4)],
        }
    losses = [[ranks[0].loss for ranks in steps[way]] for way in WAYS]
    found["largest_loss_difference"] = max(abs(ours - stock) for ours, stock in zip(*losses, strict=True))
    found["losses"] = [losses[0][0], losses[0][-1]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--written", type=float, default=1.0)
    case = Case(**vars(parser.parse_args()))
    before = os.getloadavg()[0]
    print(json.dumps({"pairs": case.pairs, **summary(measure(case)), "load": [before, os.getloadavg()[0]]}, indent=1))


if __name__ == "__main__":
    main()
