"""Whether this machine can take the run: its port and its disk, before anything starts."""

import errno
import math
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from ...compiler.plan import Job
from ...specs.build import from_json
from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Checkpoint
from ...specs.model import Model, ModelShape

MARGIN_BYTES = 64 * 2**20  # logs, metrics, ledger and report
BYTES_PER_PARAMETER = 4  # weights and optimizer state are float32
STATES_PER_CHECKPOINT = 3  # weights and AdamW's two moments
TRAINING_KINDS = ("sft", "grpo", "distill")


def check_port(port: int) -> None:
    """Refuse a port of this machine that something else listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As torch's store does, so that a port that only waits out its last connections is not called taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            raise UserError(
                f"port {port} of 127.0.0.1 is in use" if taken else f"port {port} of 127.0.0.1 cannot be used: {reason}",
                exit_code=ExitCode.UNFIT,
                fix="leave --port out to take a free one, or give another",
            ) from error


def check_nodes(jobs: Sequence[Job]) -> None:
    """Refuse jobs that span machines: this launcher starts processes on one."""
    for job in jobs:
        for role in job.roles.values():
            nodes = next((one.partition("=")[2] for one in role.torchrun if one.startswith("--nnodes=")), "1")
            if nodes != "1":
                raise UserError(
                    f"job `{job.id}` is planned for {nodes} machines, and launch starts processes on this one only",
                    exit_code=ExitCode.UNFIT,
                    fix="set cluster.nodes to 1, or run torchrun on every machine by hand",
                )


def check_folder(run_dir: Path) -> None:
    """Make the run directory and refuse one that cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".staging-probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{run_dir} cannot be written: {error.strerror}",
            exit_code=ExitCode.UNFIT,
            fix="launch with another --run-dir, or set storage.runs",
        ) from error


def check_disk(run_dir: Path, jobs: Sequence[Job]) -> None:
    """Refuse a disk with less room than the jobs still to run will write."""
    needed, free = needed_bytes(jobs), shutil.disk_usage(run_dir).free
    if needed > free:
        raise UserError(
            f"the disk of {run_dir} has too little room: {needed / 2**20:,.0f} MiB needed, {free / 2**20:,.0f} MiB free",
            exit_code=ExitCode.UNFIT,
            fix="make room, launch with another --run-dir, or keep fewer checkpoints (checkpoint.keep)",
        )


def needed_bytes(jobs: Sequence[Job]) -> int:
    """What the jobs will write: models, and the checkpoints that are kept at once with the one being written."""
    total = MARGIN_BYTES if jobs else 0
    for job in jobs:
        if "model" not in job.settings:
            continue
        model = from_json(Model, job.settings["model"])
        if model.shape is None:  # size of a given checkpoint is not in the plan
            continue
        model_bytes = parameters(model.shape) * BYTES_PER_PARAMETER
        if job.kind in TRAINING_KINDS:
            kept = from_json(Checkpoint, job.settings["checkpoint"]).keep if "checkpoint" in job.settings else 2
            total += model_bytes * (1 + (kept + 1) * STATES_PER_CHECKPOINT)
        elif job.kind in ("import", "merge", "export"):
            total += model_bytes
    return total


def parameters(shape: ModelShape) -> int:
    """Parameters of a model, without its embeddings' exact vocabulary: the larger built-in tokenizer is assumed.

    Per layer: q and o (2 * hidden * heads * head_dim), k and v (2 * hidden * kv_heads * head_dim), the router
    (hidden * experts) and three matrices per expert.
    """
    attention = 2 * shape.hidden * shape.head_dim * (shape.heads + shape.kv_heads)
    experts = shape.experts * (shape.hidden + 3 * shape.hidden * shape.expert_hidden)
    embeddings = math.prod((2, 1024, shape.hidden))
    return shape.layers * (attention + experts) + embeddings
