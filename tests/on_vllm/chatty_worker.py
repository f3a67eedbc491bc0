"""`vllm_worker` that says after every step that it works."""

import sys

from polymath.runtime.engines import vllm_worker

if __name__ == "__main__":
    assert sys.argv[1:3] == ["-m", vllm_worker.__name__], "it stands for an interpreter that runs the worker"
    del sys.argv[1:3]
    vllm_worker.WORKING_SECONDS = 0.0
    vllm_worker.main()
