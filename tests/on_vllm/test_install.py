"""The environment of vLLM for CPUs, where it cannot be made: tried with the real pip and an index that lacks what it wants."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

INSTALL = Path(__file__).parent / "install.sh"


@pytest.mark.skipif(
    (sys.version_info[:2], platform.machine()) != ((3, 11), "x86_64"), reason="the lock is for Python 3.11 on x86_64"
)
def test_a_machine_that_finds_no_cpu_build_of_torch_is_told_where_it_is(tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = {**clean, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.as_uri(), "PIP_RETRIES": "0"}
    finished = subprocess.run(
        ["bash", INSTALL, tmp_path / "venv", sys.executable],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 1
    assert "pip does not find the CPU build of torch 2.13.0" in finished.stderr
    assert "PIP_EXTRA_INDEX_URL=" in finished.stderr and "Traceback" not in finished.stderr


def test_another_python_is_told_which_one_is_wanted(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    finished = subprocess.run(["bash", INSTALL, tmp_path / "venv", other], capture_output=True, text=True, check=False)
    assert finished.returncode == 1 and "PYTHON=python3.11" in finished.stderr and not (tmp_path / "venv").exists()
