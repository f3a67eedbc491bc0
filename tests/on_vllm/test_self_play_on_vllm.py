"""A model of the run that plays on a vLLM engine, as many proposals at once as may still be needed.

The jobs that lead there, in one process; on an idle machine most of the time is spent on starting processes.
"""

from pathlib import Path

import pytest
from conformance.engines import lacks
from end_to_end.playing import JOB, compile_playing, require_solved
from end_to_end.polymath import torchrun

from .runs import engines_of, is_alive

pytestmark = [pytest.mark.skipif(lacks("process") is not None, reason=lacks("process") or ""), pytest.mark.multi_rank]

ON_VLLM = (
    "engines.rollout=vllm",
    "cluster.per_node=2",
    "placement.sft.trainer.devices=1",
    "placement.synthesize.rollout.devices=1",
)


def test_the_student_of_a_run_solves_on_vllm_what_it_was_taught(tmp_path: Path) -> None:
    plan, run = compile_playing(tmp_path, *ON_VLLM), tmp_path / "run"
    done = torchrun(plan, 1, ["import", "sft", JOB], run)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    require_solved(plan, run)
    (engine,) = engines_of(plan, run, JOB)
    assert not is_alive(engine["pid"])
