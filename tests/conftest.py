"""What all tests share: single-threaded ranks, loopback only, no reach to a hub, and expected outputs that are kept in files."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

for name, value in {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "POLYMATH_DEBUG": "0",
}.items():
    os.environ.setdefault(name, value)

REPOSITORY = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the tests see as what they expect")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with the file that holds what is expected; a difference is shown as a patch that `git apply` takes."""

    def compare(path: Path, found: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        if found != expected:
            name = path.relative_to(REPOSITORY).as_posix()
            old, new = expected.splitlines(keepends=True), found.splitlines(keepends=True)
            patch = "".join(difflib.unified_diff(old, new, f"a/{name}" if expected else "/dev/null", f"b/{name}"))
            pytest.fail(
                f"{name} expects something else. If the new text is right: pytest --update-golden, or git apply\n{patch}", False
            )

    return compare
