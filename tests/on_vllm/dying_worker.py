"""`vllm_worker`, whose engine once ends with no warning in the middle of a rollout, where some rows are written and others are not.

It dies in the job and at the policy version that a file names, which is gone afterwards.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from polymath.runtime.engines import vllm_worker

WHEN = "POLYMATH_TEST_DIES"  # environment variable: the file


class DyingWorker(vllm_worker.Worker):
    def _collect(self, output: Any) -> None:
        writes = self._running[output.request_id][0].name == "generate"
        super()._collect(output)
        when = Path(os.environ[WHEN])
        if not writes or not self._running or not when.exists():
            return
        job, version = when.read_text().split()
        if Path(self._folder).parent.name.startswith(f"{job}-") and self._version == int(version):
            when.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    assert sys.argv[1:3] == ["-m", vllm_worker.__name__], "it stands for an interpreter that runs the worker"
    del sys.argv[1:3]
    vllm_worker.Worker = DyingWorker
    vllm_worker.main()
