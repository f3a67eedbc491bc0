"""A client of one HTTP service that answers in JSON: a judge, a teacher, an engine.

What it does: bounds the size of an answer, the time to ask and the time from its first header to its last byte, the attempts, the
time of all of them together, and the requests at once. Between attempts it waits, longer each time and by a random part, so that
many clients do not come back together.
What it does not do: follow redirects or proxies; bound how long a host's name is looked up, or how many of its addresses are tried;
or guess: an answer of another form is asked for again, and when the attempts or the time are used up the caller hears why.

The URL and the key come from the environment, never from the plan; no message shows the key.
"""

import contextlib
import http.client
import io
import ipaddress
import json
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Service

FIRST_WAIT_SECONDS = 1.0  # doubles with every attempt
LONGEST_WAIT_SECONDS = 15.0
TOLD_SECONDS = 5.0  # without an answer, until whoever watches is told, and told again
CHUNK_BYTES = 65_536
CHANCE = random.SystemRandom().random  # no seed decides it, so that the ranks of a run do not wait alike
RETRIED = (408, 409, 425, 429)  # and all from 500: the service may do better next time
SHOWN_CHARACTERS = 200
CUT_KEY = 8  # characters: the shortest beginning of a key that is taken for one
UNQUOTED = "'\"\\ "  # what no key has, so that it is found in a text whatever quoted it
KEY_FILE = "_FILE"  # `<key_env>_FILE` names a file that holds the key
T = TypeVar("T")


class Unreadable(ValueError):
    """An answer that is not of the form that was asked for."""


class ServiceFailure(Exception):
    """A service gave no answer that can be used.

    `kind`: `silent`, nothing came before the attempts or the time were used up; `refused`, asking again would not help;
    `unreadable`, what came was not of the form that was asked for, every time.
    """

    def __init__(self, message: str, kind: Literal["silent", "refused", "unreadable"]) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where a service answers."""

    host: str
    port: int
    path: str  # without a slash at its end
    secure: bool
    key: str | None = field(repr=False)

    @property
    def root(self) -> str:
        """The path of what is not part of OpenAI's interface."""
        return self.path.removesuffix("/v1")

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}{self.path}"


def endpoint_of(service: Service, what: str, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """The endpoint that the environment names, as OpenAI's clients take a base URL.

    Args:
        what: the field of the spec, for messages.

    Raises:
        UserError: exit code 5. A variable is not set; or the URL is none, holds credentials, or is of another machine, to which
            there is no consent or no key.
    """
    variable = f"{what}.url_env: {service.url_env}"
    url = environment.get(service.url_env, "").strip()
    example = "http://127.0.0.1:8000/v1"
    if not url:
        raise _unfit(f"{variable} is not set", f"export {service.url_env}={example}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _unfit(f"{variable} is not a URL", f"such as {example}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _unfit(f"{variable} is not an http(s) URL", f"such as {example}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise _unfit(f"{variable} holds more than an address", "put the key into a variable of its own and name it as `key_env`")
    if not (service.remote or _is_loopback(parts.hostname)):
        raise _unfit(f"{variable} is of another machine, {parts.hostname}", "write `remote: true` to send tasks and episodes there")
    if not (service.key_env or _is_loopback(parts.hostname)):
        raise _unfit(f"{what}: another machine is asked without a key", "name the variable that holds its key as `key_env`")
    secure = parts.scheme == "https"
    key = key_of(service.key_env, what, environment) if service.key_env else None
    return Endpoint(host=parts.hostname, port=port or (443 if secure else 80), path=parts.path.rstrip("/"), secure=secure, key=key)


def key_of(name: str, what: str, environment: Mapping[str, str]) -> str:
    """The key in a variable, or in the file that `<variable>_FILE` names.

    Raises:
        UserError: exit code 5. There is none.
    """
    key, file = environment.get(name, "").strip(), environment.get(name + KEY_FILE)
    if not key and file:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise _unfit(f"{what}.key_env: the file that {name}{KEY_FILE} names cannot be read", "check its path") from error
    if not key or not (key.isascii() and key.isprintable()) or set(key) & set(UNQUOTED):
        raise _unfit(f"{what}.key_env: {name} is not set, or is no key", f"export {name}=... or {name}{KEY_FILE}=<file>")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unfit(message: str, fix: str) -> UserError:
    return UserError(message, exit_code=ExitCode.UNFIT, fix=fix)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a service is waited for."""

    attempts: int
    unreadable: int  # of the attempts, those whose answer is of another form
    answer_seconds: float  # for one answer
    total_seconds: float  # for all attempts of one request


class Watch(Protocol):
    """Whoever wants to know that a service is waited for."""

    def waiting(self, seconds: float, cause: str) -> None:
        """The service has given no answer for so long."""
        ...

    def answered(self) -> None:
        """It gives answers."""
        ...


class NoWatch:
    """Nobody wants to know."""

    def waiting(self, seconds: float, cause: str) -> None:
        pass

    def answered(self) -> None:
        pass


def waits(chance: Callable[[], float] = CHANCE) -> Iterator[float]:
    """Seconds to wait before each further attempt: up to twice as long each time, less a part of up to half that chance decides.

    Args:
        chance: draws from [0, 1).
    """
    longest = FIRST_WAIT_SECONDS
    while True:
        yield longest * (1.0 - chance() / 2)
        longest = min(LONGEST_WAIT_SECONDS, 2 * longest)


class _Failed(Exception):
    """One attempt that gave nothing. `final`: another would not either."""

    def __init__(self, what: str, *, final: bool = False) -> None:
        super().__init__(what)
        self.final = final


class HttpClient:
    """Asks one service. Safe to use from several threads: at most `at_once` requests are out, and who comes later waits."""

    def __init__(self, endpoint: Endpoint, patience: Patience, *, at_once: int, watch: Watch | None = None) -> None:
        self.endpoint, self.patience = endpoint, patience
        self.at_once = at_once
        self.watch: Watch = watch or NoWatch()
        self.sent_bytes = self.received_bytes = 0  # of questions and of whole answers, headers not counted
        self._slots = threading.BoundedSemaphore(at_once)
        self._counting = threading.Lock()

    def ask(self, path: str, question: Any, read: Callable[[Iterator[bytes]], T], *, most_bytes: int) -> T:
        """What the service says.

        Args:
            path: the whole of it.
            question: JSON to post; None gets instead.
            read: makes the answer from its bytes as they come; raises Unreadable for one of another form.
            most_bytes: a longer answer is not read to its end.

        Raises:
            ServiceFailure: no attempt gave an answer.
        """
        body = None if question is None else json.dumps(question, ensure_ascii=True, allow_nan=False).encode()
        with self._slots:
            return self._ask(path, body, read, most_bytes)

    def _ask(self, path: str, body: bytes | None, read: Callable[[Iterator[bytes]], T], most_bytes: int) -> T:
        began = time.monotonic()
        deadline = began + self.patience.total_seconds
        kind, last, unreadable = "silent", "", 0
        further = waits()
        for attempt in range(self.patience.attempts):
            if attempt:
                wait = next(further)
                if time.monotonic() + wait > deadline:
                    break
                self.watch.waiting(time.monotonic() - began, self.redacted(last))
                time.sleep(wait)
            try:
                with contextlib.closing(self._attempt(path, body, most_bytes, deadline)) as chunks:
                    answer = read(chunks)
                self.watch.answered()
                return answer
            except (Unreadable, RecursionError) as error:
                kind, last = "unreadable", str(error)
                unreadable += 1
                if unreadable == self.patience.unreadable:
                    break
            except _Failed as failure:
                kind, last = "silent", str(failure)
                if failure.final:
                    raise ServiceFailure(self.redacted(last), "refused") from None
            except ssl.SSLCertVerificationError as error:
                raise ServiceFailure(f"its certificate is not trusted: {error.verify_message}", "refused") from error
            except (OSError, http.client.HTTPException, UnicodeError) as error:  # TLS, time limits, a host that is no name
                kind, last = "silent", f"{type(error).__name__}: {error}"
        raise ServiceFailure(self.redacted(last), kind)

    def _attempt(self, path: str, body: bytes | None, most_bytes: int, deadline: float) -> Generator[bytes, None, None]:
        """The body of a successful answer, piece by piece."""
        endpoint = self.endpoint
        seconds = max(0.1, min(self.patience.answer_seconds, deadline - time.monotonic()))
        ends = time.monotonic() + seconds
        connection: http.client.HTTPConnection
        if endpoint.secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=seconds, context=context)
        else:
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=seconds)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            with _Response(connection.sock, io.BufferedReader(_Answer(connection.sock, seconds, ends, self.watch))) as response:
                response.begin()
                if response.status != http.client.OK:
                    final = response.status < http.client.INTERNAL_SERVER_ERROR and response.status not in RETRIED
                    said = response.read(SHOWN_CHARACTERS).decode("utf-8", "replace")
                    raise _Failed(f"status {response.status}: {said!r}", final=final)
                received = 0
                while chunk := response.read1(CHUNK_BYTES):
                    received += len(chunk)
                    if received > most_bytes:
                        raise Unreadable(f"an answer of more than {most_bytes} bytes")
                    yield chunk
                if response.length:
                    raise _Failed(f"the answer broke off {response.length} bytes before its end")
            with self._counting:
                self.sent_bytes += len(body or b"")
                self.received_bytes += received
        finally:
            connection.close()

    def redacted(self, text: str) -> str:
        """The text without the key, and without the beginning of one that was cut off."""
        if key := self.endpoint.key:
            for length in range(len(key), min(len(key), CUT_KEY) - 1, -1):
                text = text.replace(key[:length], "***")
        return text


class _Response(http.client.HTTPResponse):
    """An answer, headers and all, read from a stream that bounds it."""

    def __init__(self, sock: socket.socket, stream: io.BufferedReader) -> None:
        super().__init__(sock)
        self.fp.close()
        self.fp = stream


class _Answer(io.RawIOBase):
    """What a socket receives before a moment. A limit of the socket's own would start anew with every byte that drips in."""

    def __init__(self, sock: socket.socket, seconds: float, ends: float, watch: Watch) -> None:
        self._socket, self._seconds, self._ends, self._watch = sock, seconds, ends, watch
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for bytes, and tell now and then that there are none.

        Raises:
            TimeoutError: the whole time is over.
        """
        began = time.monotonic()
        while (remaining := self._ends - time.monotonic()) > 0:
            self._socket.settimeout(min(TOLD_SECONDS, remaining))
            try:
                received = self._socket.recv_into(buffer)
            except TimeoutError:
                self._watch.waiting(time.monotonic() - began, "the answer has stopped" if self._received else "no answer yet")
            else:
                self._received += received
                return received
        raise TimeoutError(f"no {'whole ' if self._received else ''}answer in {self._seconds:.3g} seconds")


def read_json(chunks: Iterator[bytes]) -> Any:
    """An answer that is one JSON value.

    Raises:
        Unreadable: it is none.
    """
    body = b"".join(chunks)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the answer is not JSON: {shown(body)}") from error


def shown(body: bytes) -> str:
    """The beginning of an answer, for messages."""
    return repr(body[:SHOWN_CHARACTERS].decode("utf-8", "replace"))
