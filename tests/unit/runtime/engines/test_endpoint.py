"""Promises of the one HTTP client: how long and how much it takes from a service, whatever that does, and when it asks again."""

import contextlib
import itertools
import random
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polymath.runtime.engines import endpoint
from polymath.runtime.engines.endpoint import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    Endpoint,
    HttpClient,
    NoWatch,
    Patience,
    ServiceFailure,
    read_json,
    waits,
)

ANSWER_SECONDS = 0.3
ENDED = r"no (whole )?answer in 0\.3 seconds"
OK, ERROR = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 Oh no\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "status": (b"", b"HTTP/1.1 200 O" + b"K" * 10_000),
    "header": (OK + b"X-Long: ", b"a"),
    "headers": (OK, b"A: 1\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "error": (ERROR + b"Content-Length: 100\r\n\r\n", b"e"),
    "error in chunks": (ERROR + CHUNKED, b"1\r\ne\r\n"),
    "body": (OK + b"Content-Length: 900\r\n\r\n", b" "),
    "body without a length": (OK + b"\r\n", b" "),
    "chunks": (OK + CHUNKED, b"1\r\n \r\n"),
    "length of a chunk": (OK + CHUNKED, b"0"),
    "trailers": (OK + CHUNKED + b"1\r\n1\r\n0\r\n", b"Trailer: 1\r\n"),
}
FLOODS = {
    "status": (b"HTTP/1.1 " + b"2" * 100_000, "more than 65536 bytes"),
    "header": (OK + b"X-Long: " + b"a" * 100_000, "more than 65536 bytes"),
    "headers": (OK + b"A: 1\r\n" * 1_000, "more than 100 headers"),
    "error": (ERROR + b"\r\n" + b"e" * 1_000_000, f"status 500: '{'e' * 200}'$"),
    "body": (OK + b"\r\n" + b" " * 1_000_000, "more than 1000 bytes"),
}
Script = Callable[[socket.socket], Any]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that nobody trusts yet, with its key in `key.pem` beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path.with_name("key.pem"))]
    subprocess.run([*command, "-out", str(path)], check=True, capture_output=True)
    return path


@contextlib.contextmanager
def _listening(script: Script, certificate: Path | None = None) -> Iterator[int]:
    """The port of a server that does as told with every connection; each ends when the test does."""
    over = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:  # whoever asked may have left
            held = context.wrap_socket(connection, server_side=True) if certificate else connection
            script(held)
            over.wait()

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            thread.join()


def _client(port: int, patience: Patience, **changes: Any) -> HttpClient:
    where = Endpoint(host="127.0.0.1", port=port, path="/v1", secure=changes.pop("secure", False), key="sk-very-secret")
    return HttpClient(where, patience, at_once=1, **changes)


def _asked(
    script: Script, question: Any = "?", answer_seconds: float = 30.0, certificate: Path | None = None, **changes: Any
) -> Any:
    """What one attempt gets from a server."""
    patience = Patience(attempts=1, unreadable=1, answer_seconds=answer_seconds, total_seconds=30.0)
    with _listening(script, certificate) as port:
        client = _client(port, patience, secure=certificate is not None, **changes)
        return client.ask("/v1/ask", question, read_json, most_bytes=1000)


def _pause(seconds: float = 0.02) -> None:
    threading.Event().wait(seconds)


def _dripping(at_once: bytes, drops: bytes) -> Script:
    """Sends something at once and then `drops` for ever, each byte long before the last would be missed."""

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(at_once)
        for drop in itertools.cycle(drops):
            connection.sendall(bytes([drop]))
            _pause()

    return script


@pytest.mark.parametrize("where", DRIPS)
def test_a_service_that_drips_is_given_up_wherever_in_its_answer_it_does(where: str) -> None:
    with pytest.raises(ServiceFailure, match=ENDED) as caught:
        _asked(_dripping(*DRIPS[where]), answer_seconds=ANSWER_SECONDS)
    assert caught.value.kind == "silent"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("at_once", [0, 2000], ids=["not at all", "in small pieces"])
def test_a_service_that_takes_no_question_is_given_up(
    tls: bool, at_once: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = request.getfixturevalue("certificate") if tls else None
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate or ""))

    def script(connection: socket.socket) -> None:
        while at_once and connection.recv(at_once):
            _pause(0.005)

    with pytest.raises(ServiceFailure, match="timed out"):
        _asked(script, question="?" * 64_000_000, answer_seconds=ANSWER_SECONDS, certificate=certificate)


@pytest.mark.parametrize("where", FLOODS)
def test_a_service_that_floods_is_read_no_further_than_to_a_bound(where: str) -> None:
    flood, says = FLOODS[where]

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        while True:
            connection.sendall(flood)

    with pytest.raises(ServiceFailure, match=says):
        _asked(script)


class Told(NoWatch):
    """Whoever is told what is waited for."""

    def __init__(self) -> None:
        self.told = {cause: threading.Event() for cause in ("no answer yet", "the answer has stopped")}

    def waiting(self, seconds: float, cause: str) -> None:
        self.told[cause].set()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_slow_answer_in_many_pieces_is_not_cut_off_and_who_waits_for_it_is_told(
    tls: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = request.getfixturevalue("certificate") if tls else None
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate or ""))
    monkeypatch.setattr(endpoint, "TOLD_SECONDS", 0.005)
    question = "?" * 100_000

    watch = Told()

    def script(connection: socket.socket) -> None:
        asked = b""
        while not asked.endswith(b'?"'):
            asked += connection.recv(65536)
        assert watch.told["no answer yet"].wait(10)
        pieces = (OK[:3], OK[3:], b"Content-Length: 20\r\n", b"\r\n", *[b"  "] * 9, b"42")
        for piece in pieces if asked.endswith(f'\r\n\r\n"{question}"'.encode()) else ():
            connection.sendall(piece)
            _pause()
            if piece == b"\r\n":
                assert watch.told["the answer has stopped"].wait(10)

    assert _asked(script, question, certificate=certificate, watch=watch) == 42


def test_a_service_whose_certificate_nobody_vouches_for_is_refused_at_once_and_never_sees_the_key(certificate: Path) -> None:
    seen: list[bytes] = []
    patience = Patience(attempts=1_000, unreadable=1, answer_seconds=30.0, total_seconds=10.0)
    says = "certificate is not trusted: self.signed certificate"
    with (
        _listening(lambda connection: seen.append(connection.recv(65536)), certificate) as port,
        pytest.raises(ServiceFailure, match=says) as caught,
    ):
        _client(port, patience, secure=True).ask("/v1/ask", "?", read_json, most_bytes=1000)
    assert caught.value.kind == "refused" and seen == []


@given(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=40, max_size=40))
def test_a_wait_is_half_to_all_of_one_that_doubles_up_to_a_bound(chances: list[float]) -> None:
    found = list(itertools.islice(waits(iter(chances).__next__), len(chances)))
    longest = [min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt) for attempt in range(len(chances))]
    assert all(most / 2 <= wait <= most for wait, most in zip(found, longest, strict=True))


def test_clients_that_lost_a_service_together_do_not_come_back_together_whatever_was_seeded() -> None:
    clients: list[list[float]] = []
    for _ in range(100):
        random.seed(0)  # as every rank of a run may have done
        clients.append(list(itertools.islice(waits(), 8)))
    for together in zip(*clients, strict=True):  # the same attempt of all
        assert len(set(together)) == len(clients)
        assert max(together) - min(together) > 0.3 * max(together)


def test_no_wait_goes_past_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    with _listening(lambda _: None) as port:
        pass  # and nobody is there any more
    client = _client(port, Patience(attempts=1_000, unreadable=1, answer_seconds=900.0, total_seconds=100.0))
    monkeypatch.setattr(endpoint.time, "sleep", sleep)
    monkeypatch.setattr(endpoint.time, "monotonic", lambda: now)
    with pytest.raises(ServiceFailure, match="refused"):
        client.ask("/v1/ask", None, read_json, most_bytes=1000)
    assert 100.0 - LONGEST_WAIT_SECONDS <= now <= 100.0
