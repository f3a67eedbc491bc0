"""A client of a judge: a language model behind an OpenAI-compatible chat-completions endpoint, which answers in strict JSON.

What it does: sends a question, with bounds on time, size, attempts and questions at once, and reads the answer as JSON of the form
that is asked for.
What it does not do: know what is judged (`../judging.py`), follow redirects or proxies, or guess: an answer of another form is
asked for again, and when the attempts are used up the run stops. No verdict is ever made up.

The URL and the key come from the environment, never from the plan; no message shows the key.
"""

import http.client
import ipaddress
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Judge

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0  # doubles with every attempt
ANSWER_SECONDS = 120.0
MOST_BYTES = 1 << 20  # of an answer; a verdict is a few dozen
AT_ONCE = 8  # questions in flight, per rank
RETRIED = (408, 409, 425, 429)  # and all from 500: the endpoint may do better next time
SHOWN_CHARACTERS = 200
T = TypeVar("T")


class UnreadableVerdict(ValueError):
    """An answer that is not of the form that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where a judge answers."""

    host: str
    port: int
    path: str
    secure: bool
    key: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}{self.path}"


def endpoint_of(judge: Judge, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """The endpoint that the environment names; `<url>/chat/completions`, as OpenAI's clients take a base URL.

    Raises:
        UserError: exit code 5. A variable is not set, the URL is none, holds credentials, or is of another machine without consent.
    """
    what = f"engines.judge.url_env: {judge.url_env}"
    url = environment.get(judge.url_env, "").strip()
    if not url:
        raise _unfit(f"{what} is not set", f"export {judge.url_env}=http://127.0.0.1:8000/v1")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _unfit(f"{what} is not a URL", "such as http://127.0.0.1:8000/v1") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _unfit(f"{what} is not an http(s) URL", "such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise _unfit(f"{what} holds more than an address", "put the key into a variable of its own and name it as `key_env`")
    if not (judge.remote or _is_loopback(parts.hostname)):
        raise _unfit(f"{what} is of another machine, {parts.hostname}", "write `remote: true` to send tasks and episodes there")
    key = environment.get(judge.key_env, "").strip() if judge.key_env else None
    if key == "" or (key and not (key.isascii() and key.isprintable())):
        raise _unfit(f"engines.judge.key_env: {judge.key_env} is not set, or is no key", f"export {judge.key_env}=...")
    secure = parts.scheme == "https"
    path = f"{parts.path.rstrip('/')}/chat/completions"
    return Endpoint(host=parts.hostname, port=port or (443 if secure else 80), path=path, secure=secure, key=key)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unfit(message: str, fix: str) -> UserError:
    return UserError(message, exit_code=ExitCode.UNFIT, fix=fix)


class _Failure(Exception):
    """One attempt that gave no verdict. `final`: another would not either."""

    def __init__(self, what: str, *, final: bool = False) -> None:
        super().__init__(what)
        self.final = final


def at_once(action: Callable[[T], None], items: Sequence[T]) -> None:
    """Do it for every item, a few at a time. The first error ends those that have not begun."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") as pool:
        pending = [pool.submit(action, item) for item in items]
        try:
            for one in as_completed(pending):
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class JudgeClient:
    """Asks one endpoint. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self.endpoint, self.model = endpoint, model

    def ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[Any], T]) -> T:
        """The verdict on one question.

        Args:
            messages: the conversation.
            read: makes the verdict from the answer's JSON; raises UnreadableVerdict for one of another form.

        Raises:
            UserError: exit code 6. The endpoint refused, or gave no verdict in any attempt; it is named, with the last cause.
        """
        request = {"model": self.model, "messages": list(messages), "temperature": 0, "response_format": {"type": "json_object"}}
        body = json.dumps(request, ensure_ascii=True, allow_nan=False).encode()
        last = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            try:
                return read(_verdict(self._post(body)))
            except (UnreadableVerdict, RecursionError) as error:
                last = f"no verdict: {error}"
            except _Failure as failure:
                last = str(failure)
                if failure.final:
                    break
            except (OSError, http.client.HTTPException, UnicodeError) as error:  # TLS, time limits, a host that is no name
                last = f"{type(error).__name__}: {error}"
        raise UserError(
            f"the judge at {self.endpoint} gave no verdict: {self._redacted(last)}",
            exit_code=ExitCode.FAILED,
            fix="mend the endpoint, its model or its key, and launch again: verdicts that were given are kept",
        )

    def _post(self, body: bytes) -> bytes:
        """The body of a successful answer."""
        endpoint, deadline = self.endpoint, time.monotonic() + ANSWER_SECONDS
        connection: http.client.HTTPConnection
        if endpoint.secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=ANSWER_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=ANSWER_SECONDS)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        try:
            connection.request("POST", endpoint.path, body, headers)
            response = connection.getresponse()
            content = bytearray()
            while chunk := response.read1(65_536):
                content += chunk
                if len(content) > MOST_BYTES:
                    raise _Failure(f"an answer of more than {MOST_BYTES} bytes")
                if time.monotonic() > deadline:  # the socket's own limit starts anew with every byte
                    raise _Failure(f"no whole answer in {ANSWER_SECONDS:g} seconds")
            if response.length:
                raise _Failure(f"the answer broke off {response.length} bytes before its end")
        finally:
            connection.close()
        if response.status != http.client.OK:
            final = response.status < http.client.INTERNAL_SERVER_ERROR and response.status not in RETRIED
            said = bytes(content[:SHOWN_CHARACTERS]).decode("utf-8", "replace")
            raise _Failure(f"status {response.status}: {said!r}", final=final)
        return bytes(content)

    def _redacted(self, text: str) -> str:
        return text.replace(self.endpoint.key, "***") if self.endpoint.key else text


def _verdict(body: bytes) -> Any:
    """The JSON that the model wrote, from an answer of the endpoint."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise UnreadableVerdict(f"the endpoint's answer is not a chat completion: {_shown(body)}") from error
    try:
        return json.loads(content)
    except (ValueError, TypeError, RecursionError) as error:
        raise UnreadableVerdict(f"the model's answer is not JSON: {_shown(str(content).encode())}") from error


def _shown(body: bytes) -> str:
    return repr(body[:SHOWN_CHARACTERS].decode("utf-8", "replace"))
