"""The `vllm` engines of a job: as many copies as the plan has devices for, each in a process of its own, shared by all ranks.

Copies are dealt out to the models that the job asks. Where there are fewer copies than models, the models take turns on them, which
our worker knows how to do and vLLM's server does not. Ranks start the copies, and a file in the job's folder tells the others where
each of them answers.
"""

import json
import os
import secrets
import select
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...compiler.plan import Role
from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Engines, Precision
from ..data.tokenizers import ChatTokenizer
from ..files import write_json
from ..jobs import JobContext
from ..launch.events import EventLog, ServiceWaits
from .endpoint import Endpoint, Unreadable, Watch
from .frames import Frame, receive, send
from .handshake import CANARY_TOKENS
from .outside import outside_of
from .shared import SharedEngine
from .vllm_http import MODEL, HttpEngine, is_healthy
from .vllm_launch import GPUS, EngineProcess, EngineSettings, copies_of, free_port, listening_socket
from .vllm_process import ProcessEngine
from .vllm_server import KEY, OUTSIDE_KEY, OUTSIDE_SOCKET, OUTSIDE_WORDS
from .vllm_server import WORDS as SERVER_WORDS
from .vllm_transfer import TRAINERS, Transfer

SEQUENCES = 256  # that an engine works on at once; more wait
LOGITS = 2**25  # float32 of one forward pass over prompts that are scored: 128 MiB, and about as much again for their softmax
BATCHED_TOKENS = (512, 8192)  # of one forward pass, at least and at most
CACHE_BYTES = (2**26, 2**32)  # of keys and values, at least and at most


def open_vllm(context: JobContext, role: str, folders: Mapping[str, Path], tokenizer: ChatTokenizer) -> dict[str, SharedEngine]:
    """An engine for each named model folder. Collective.

    Raises:
        UserError: exit code 5. vLLM is not installed, or an engine did not come up.
    """
    if not folders:
        return {}
    engines = context.setting("engines", Engines)
    placed = context.job.roles[role]
    dealt = deal(list(folders), placed.devices // placed.tensor)
    earlier = 0 if role == "rollout" else copies_of(context.job.roles.get("rollout"))  # each has a port of its own outside
    outside = outside_of(engines.listen) if engines.listen is not None else None
    place = context.folder / "engines"
    started: list[Copy] = []
    listening: dict[int, dict[str, Any]] = {}  # what is told of those of them that answer outside
    for number in range(context.rank, 1 + max(max(copies) for copies in dealt.values()), context.world_size):
        first = next(name for name, copies in dealt.items() if number in copies)
        settings, log = engine_settings(context, role, folders[first], number), place / f"{role}.{'.'.join(folders)}.{number}.log"
        if engines.transport != "http":
            started.append(start_worker(settings, log, context.cleanup))
        elif outside is None:
            started.append(start_server(settings, log, context.cleanup))
        else:
            with outside.bound(earlier + number) as listener:
                started.append(start_server(settings, log, context.cleanup, outside=(listener, outside.key)))
            listening[len(started) - 1] = {
                "models": [name for name, copies in dealt.items() if number in copies],
                "url": outside.url(earlier + number),
            }
    for ready, copy in enumerate(started):
        context.progress(ready, len(started), f"vLLM engines answer (log: {copy.process.log})")
        copy.wait()
        if ready in listening:
            EventLog(context.run_dir).write("engine_listens", folder=context.job.folder, role=role, **listening[ready])
        write_json(copy.process.log.with_suffix(".json"), copy.facts)
        context.progress(ready + 1, len(started), "vLLM engines answer")
    context.barrier()
    in_turns = len({tuple(each) for each in dealt.values()}) < len(folders)

    def connected(name: str, number: int) -> ProcessEngine | HttpEngine:
        written = place / f"{role}.{'.'.join(folders)}.{number}.json"
        waits = ServiceWaits(context.run_dir, context.job.folder, f"the {role} engine")
        return connect(json.loads(written.read_text(encoding="utf-8")), folders[name], tokenizer, in_turns=in_turns, watch=waits)

    opened = {}
    for name, copies in dealt.items():
        transfer = None
        if placed.weights in TRAINERS:  # the first rank tells all copies
            told = [connected(name, number) for number in copies] if context.is_first_rank else []
            transfer = Transfer(placed.weights, context, told, placed.tensor)
            context.cleanup.callback(transfer.close)
        engine = connected(name, copies[context.rank % len(copies)])
        opened[name] = SharedEngine(engine, context, owns_copy=context.rank < len(copies), transfer=transfer)
    context.barrier()
    return opened


def deal(names: Sequence[str], copies: int) -> dict[str, list[int]]:
    """Which copies serve which model: each model has its own, or all of them serve all models."""
    each = copies // len(names)
    if not each:
        return {name: list(range(copies)) for name in names}
    return {name: list(range(place * each, (place + 1) * each)) for place, name in enumerate(names)}


def connect(
    facts: Mapping[str, Any],
    folder: Path,
    tokenizer: ChatTokenizer,
    *,
    in_turns: bool = False,
    watch: Watch | None = None,
) -> ProcessEngine | HttpEngine:
    """The engine of a copy that answers, from what is written of it. `watch` is told that our worker makes no step."""
    log = Path(facts["log"])
    if "socket" in facts:
        address = Path(facts["socket"])
        return ProcessEngine(address, folder=folder, tokenizer=tokenizer, in_turns=in_turns, log=log, watch=watch)
    assert not in_turns, "vLLM's server does not change its model for one question"
    key = Path(facts["key"]).read_text(encoding="utf-8")
    endpoint = Endpoint(host="127.0.0.1", port=facts["port"], path="/v1", secure=False, key=key)
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return HttpEngine(endpoint, pid=facts["pid"], log=log, vocabulary=vocabulary, tokenizer=tokenizer)


class Copy:
    """A process that was started, how to see that it answers, and what others must know of it."""

    def __init__(self, process: EngineProcess, facts: Mapping[str, Any]) -> None:
        self.process = process
        self.facts = {"pid": process.pid, "log": str(process.log), **facts}

    def wait(self) -> None:
        """Until it answers.

        Raises:
            UserError: exit code 5. It did not come up.
        """
        raise NotImplementedError


class _Worker(Copy):
    def wait(self) -> None:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.facts["socket"])
            send(probe, Frame(words={"call": "hello"}))
            self.process.wait_until(lambda: _answered(probe))


class _Server(Copy):
    def wait(self) -> None:
        endpoint = Endpoint(host="127.0.0.1", port=self.facts["port"], path="/v1", secure=False, key=None)
        self.process.wait_until(lambda: is_healthy(endpoint))


def start_worker(settings: EngineSettings, log: Path, cleanup: ExitStack) -> Copy:
    """Our worker, behind a socket that nobody else reaches. It ends with `cleanup`."""
    address = _private_folder(cleanup) / "socket"
    with listening_socket(address) as listener:
        words = [f"--socket={listener.fileno()}", *settings.words]
        process = EngineProcess("vllm_worker", words, log=log, variables=settings.variables, pass_fds=[listener.fileno()])
    cleanup.callback(process.close)
    return _Worker(process, {"socket": str(address)})


def start_server(
    settings: EngineSettings, log: Path, cleanup: ExitStack, *, outside: tuple[socket.socket, str] | None = None
) -> Copy:
    """vLLM's server, on loopback and with a key; and outside, on a socket that listens, with another. It ends with `cleanup`."""
    key_file = _private_folder(cleanup) / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(secrets.token_hex(32), encoding="utf-8")
    port = free_port()
    words = ["--host=127.0.0.1", f"--port={port}", f"--served-model-name={MODEL}", *SERVER_WORDS, *settings.words]
    hidden = {KEY: key_file.read_text(encoding="utf-8"), "VLLM_SERVER_DEV_MODE": "1"}  # the mode has the routes for new weights
    handed: list[int] = []
    if outside is not None:
        handed = [outside[0].fileno()]
        words += OUTSIDE_WORDS
        hidden |= {OUTSIDE_SOCKET: str(handed[0]), OUTSIDE_KEY: outside[1]}
    process = EngineProcess("vllm_server", words, log=log, variables={**settings.variables, **hidden}, pass_fds=handed)
    cleanup.callback(process.close)
    return _Server(process, {"port": port, "key": str(key_file)})


def _private_folder(cleanup: ExitStack) -> Path:
    """Of this user alone, and with a path short enough for a socket's."""
    return Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="polymath-")))


def _answered(probe: socket.socket) -> bool:
    if not select.select([probe], [], [], 0)[0]:
        return False
    try:
        receive(probe)
        return True
    except (EOFError, OSError):  # the process ended; whoever waits for it will see that
        return False
    except Unreadable as error:
        raise UserError(f"the vLLM engine gives no answer that can be used: {error}", exit_code=ExitCode.UNFIT) from error


def gpus_of(roles: Mapping[str, Role], name: str, number: int, visible: Sequence[str]) -> tuple[str, ...]:
    """The GPUs of a copy, of those that the job sees. The roles of a job have theirs one after the other, the trainer's first; one
    that shares the trainer's begins with them."""
    role, first = roles[name], 0
    for other in ("trainer", "rollout", "scorer"):
        if role.shared or other == name:
            break
        if other in roles and not roles[other].shared and (other != "trainer" or roles[other].mesh is not None):
            first += roles[other].devices
    first += number * role.tensor
    return tuple(visible[first : first + role.tensor])


def engine_settings(context: JobContext, role: str, folder: Path, number: int) -> EngineSettings:
    """What a copy needs for the job's longest episodes, as many of them at once as an engine works on."""
    limits = [domain["limits"] for domain in context.job.settings["domains"].values()]
    longest = max(CANARY_TOKENS, *(one["context_tokens"] for one in limits if one is not None))
    dtype = context.setting("precision", Precision).compute
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    placed, cluster = context.job.roles[role], context.plan.cluster
    visible = os.environ[GPUS].split(",") if os.environ.get(GPUS) else [str(number) for number in range(cluster.per_node)]
    heads, layers = config["num_key_value_heads"] * config["head_dim"], config["num_hidden_layers"]
    bytes_per_token = 2 * layers * heads * {"float32": 4, "bfloat16": 2}[dtype]
    return EngineSettings(
        folder=folder,
        dtype=dtype,
        context_tokens=longest,
        sequences=SEQUENCES,
        batched_tokens=_within(BATCHED_TOKENS, LOGITS // config["vocab_size"]),
        cache_bytes=_within(CACHE_BYTES, SEQUENCES * longest * bytes_per_token),
        tensor=placed.tensor,
        transfer=placed.weights if placed.weights in TRAINERS else None,
        gpus=gpus_of(context.job.roles, role, number, visible) if cluster.accelerator != "cpu" else (),
    )


def _within(bounds: tuple[int, int], value: int) -> int:
    least, most = bounds
    return min(max(value, least), most)
