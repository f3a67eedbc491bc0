"""Ranks of a test: processes of this machine that meet over gloo."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

RANKS = 2


def on_ranks(run: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Call `run(rank, *arguments)` on every rank. What one of them raises is raised.

    Args:
        run: of a module, so that another process finds it.
        folder: the ranks meet in it.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(_rank, (run, str(folder / "meeting"), arguments), nprocs=RANKS)


def _rank(rank: int, run: Callable[..., None], meeting: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    run(rank, *arguments)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # As every rank of a job ends: a thread of gloo that lets go of its last tensor while Python shuts down would abort the process.
    os._exit(0)
