"""vLLM's server, as a job starts it: nobody without the key asks it anything, and nobody beyond this machine reaches it."""

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conformance.engines import lacks, make_models, settings_of
from polymath.runtime.engines.vllm import Copy, start_server
from polymath.runtime.launch.process import descendants

pytestmark = pytest.mark.skipif(lacks("http") is not None, reason=lacks("http") or "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    root = tmp_path_factory.mktemp("server")
    with ExitStack() as cleanup:
        copy = start_server(settings_of(make_models(root, tied=True).folders["first"]), root / "server.log", cleanup)
        copy.wait()
        yield copy


def _ask(server: Copy, method: str, path: str, key: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.facts["port"], timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key is not None else {})
    connection.request(method, path, json.dumps({"method": "sync_weights", "args": ["/nowhere"]}), headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("key", [None, "", "another"])
def test_no_route_but_health_answers_without_the_key(server: Copy, key: str | None) -> None:
    paths = (("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/collective_rpc"), ("POST", "/reset_prefix_cache"))
    for method, path in (
        *paths,
        ("GET", "/docs"),
        ("GET", "/metrics"),
        ("POST", "//collective_rpc"),
        ("OPTIONS", "/collective_rpc"),
    ):
        assert _ask(server, method, path, key) == 401, path
    assert _ask(server, "GET", "/health", key) == 200


def test_the_key_opens_it_and_stands_neither_in_a_command_nor_in_the_log(server: Copy) -> None:
    key_file = Path(server.facts["key"])
    key = key_file.read_text()
    assert _ask(server, "GET", "/v1/models", key) == 200
    assert key_file.stat().st_mode & 0o077 == 0 and key_file.parent.stat().st_mode & 0o077 == 0
    for pid in [server.process.pid, *descendants(server.process.pid)]:
        assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert key not in server.process.log.read_text()


def test_it_listens_on_loopback_alone(server: Copy) -> None:
    own = {inode for pid in [server.process.pid, *descendants(server.process.pid)] for inode in _sockets(pid)}
    listening = [
        (local, inode)
        for table in ("tcp", "tcp6")
        for _, local, _, state, *_, inode in (
            (*line.split()[:4], line.split()[9]) for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        )
        if state == "0A" and inode in own
    ]
    ports = {int(local.rpartition(":")[2], 16) for local, _ in listening}
    assert server.facts["port"] in ports
    for local, _ in listening:
        address = local.rpartition(":")[0]
        assert address == "0100007F" or address == "0" * 24 + "01000000", f"it listens on {local}"


def _sockets(pid: int) -> Iterator[str]:
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]
