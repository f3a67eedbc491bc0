"""An address beyond loopback, where the vLLM servers of a job answer too: of this machine, with a port for each server and a key.

The environment names both, never the spec. What is answered there, `vllm_server.py` says.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Listen
from .endpoint import key_of

WHAT = "engines.listen"
PORTS = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """An address of this machine, the port of the first server there, and the key that all of them want."""

    host: str
    port: int
    key: str = field(repr=False)
    variable: str  # that named the address, for messages

    def url(self, number: int) -> str:
        """Where server `number`, counted from 0, answers as OpenAI's does."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port + number}/v1"

    def bound(self, number: int) -> socket.socket:
        """The socket of server `number`. It listens, so that nobody else takes the port while the model is loaded.

        Raises:
            UserError: exit code 5. The address is not of this machine, or the port is in use.
        """
        found = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((self.host, self.port + number))
            found.listen()
        except (OSError, OverflowError) as error:
            found.close()
            reason = (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)).lower()
            raise UserError(
                f"{self.variable}: nothing can listen on {self.host}, port {self.port + number}: {reason}",
                exit_code=ExitCode.UNFIT,
                fix="name an address of this machine (`hostname -I` lists them) and a free port, with as many after it as servers",
            ) from error
        return found


def outside_of(listen: Listen, environment: Mapping[str, str] = os.environ) -> Outside:
    """What the environment says of it.

    Raises:
        UserError: exit code 5. A variable is not set, or holds no address or no key.
    """
    variable = f"{WHAT}.address_env: {listen.address_env}"
    text = environment.get(listen.address_env, "").strip()
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port or PORTS
        ipaddress.ip_address(host)
        if parts.netloc != text or "@" in text or port >= PORTS:
            raise ValueError(text)
    except ValueError as error:
        problem = "is not set" if not text else "is not an address with a port"
        fix = f"export {listen.address_env}=10.0.0.5:8000, with an address of this machine"
        raise UserError(f"{variable} {problem}", exit_code=ExitCode.UNFIT, fix=fix) from error
    return Outside(host=host, port=port, key=key_of(listen.key_env, WHAT, environment), variable=variable)


def check_outside(listen: Listen, servers: int) -> None:
    """Refuse an environment in which so many servers could not listen.

    Raises:
        UserError: exit code 5.
    """
    outside = outside_of(listen)
    for number in range(servers):
        outside.bound(number).close()
