"""Copies of an engine that die or hang while weights are on their way over a communicator, which knows nothing of it.

What stands for the communicator here is a collective that never ends. `tests/on_vllm/test_transfer.py` has vLLM's engines.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from on_policy_runs import make_run
from polymath.runtime.engines import vllm_transfer
from polymath.runtime.engines.protocol import EngineSilent
from polymath.runtime.engines.vllm_transfer import Transfer
from polymath.runtime.engines.weights import Weights
from polymath.runtime.jobs import JobContext
from polymath.specs.diagnostics import ExitCode

SILENT = EngineSilent("the vLLM engine of this job", "its process has ended (its log: engine.log)")
WEIGHTS = Weights([{name: torch.ones(1)} for name in "abc"])


class Copy:
    """Of an engine, as the first rank sees it. `answers` is set where it takes weights, and not where it is silent."""

    def __init__(self, answers: bool = False) -> None:
        self._answers = answers

    def transfer(self, step: str, info: Any, *, policy_version: int) -> None:
        if step == "update" and not self._answers:
            raise SILENT

    def close(self) -> None:
        pass


def _send_to(transfer: Transfer, others: threading.Event) -> None:
    """As vLLM's trainer sends: the copies receive in a thread, beside a collective that all of them have to come to."""
    threading.Thread(target=lambda: _quietly(transfer), daemon=True).start()
    assert others.wait(60)
    raise RuntimeError("Connection closed by peer")  # what a communicator says that does not wait for ever


def _quietly(transfer: Transfer) -> None:
    with contextlib.suppress(EngineSilent):
        transfer._copies.update_weights({})


def _stuck(root: str, process: int) -> None:
    """A rank whose communicator waits for ever."""
    with pytest.MonkeyPatch.context() as patch:
        context = make_run(Path(root), {}, patch)
        context.folder.mkdir(parents=True)
        context.cleanup.callback(os.kill, process, 9)
        patch.setattr(vllm_transfer, "END_SECONDS", 0.2)
        transfer = Transfer("nccl", context, [Copy(answers=True), Copy()], 1)  # type: ignore[list-item]
        context.cleanup.callback(transfer.close)
        patch.setattr(transfer, "_send_by_vllm", lambda: _send_to(transfer, threading.Event()))
        transfer(WEIGHTS, 1)


def test_a_rank_that_waits_in_a_collective_for_a_silent_copy_ends_itself_and_the_engines(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as engine:
        rank = multiprocessing.get_context("spawn").Process(target=_stuck, args=(str(tmp_path), engine.pid))
        rank.start()
        rank.join(60)
        assert rank.exitcode == ExitCode.INTERRUPTED
        assert engine.wait(10) == -9
    (outcome,) = (tmp_path / "jobs").glob("*/outcome.0.json")
    said = json.loads(outcome.read_text())
    assert said["exit_code"] == ExitCode.INTERRUPTED and "its process has ended" in said["message"]


def test_a_communicator_that_fails_for_a_silent_copy_tells_the_copy_and_nothing_is_ended_early(
    context: JobContext, monkeypatch: pytest.MonkeyPatch, models: Mapping[str, Path]
) -> None:
    transfer = Transfer("nccl", context, [Copy()], 1)  # type: ignore[list-item]
    failed = threading.Event()
    monkeypatch.setattr(transfer._copies, "_on_silent", lambda silent: (transfer._expect_the_end(silent), failed.set()))
    monkeypatch.setattr(transfer, "_send_by_vllm", lambda: _send_to(transfer, failed))
    with pytest.raises(EngineSilent, match="its process has ended"):
        transfer(WEIGHTS, 1)
    assert transfer._over.is_set()  # which whoever would end this rank waits for


def test_an_error_without_a_silent_copy_stays_what_it_is(context: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = Transfer("nccl", context, [Copy(answers=True)], 1)  # type: ignore[list-item]
    come = threading.Event()
    come.set()
    monkeypatch.setattr(transfer, "_send_by_vllm", lambda: _send_to(transfer, come))
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        transfer(WEIGHTS, 1)
