"""The teachers of a job: who scores what, and how each is known to be its checkpoint.

A teacher is an engine that the job opens on the checkpoint, or one that somebody serves (`engines.teachers`). One that is served
gets a handshake before training. Every teacher that is not part of the trainer's process gets a canary before training, and again
after it scored its share of a batch, before another teacher takes its turn and before the batch is published: a teacher that is or
becomes another model ends the run, and nothing that it said is trained on.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Engines, Precision, Service
from ..data.tokenizers import ChatTokenizer
from ..engines.endpoint import HttpClient, endpoint_of
from ..engines.handshake import Canary, canary_sequences, require_same_server, unfit
from ..engines.protocol import Engine
from ..engines.registry import EngineRole, open_engines
from ..engines.served_engine import AT_ONCE, PATIENCE, ServedEngine
from ..engines.transformers_engine import LARGEST_PARAMETERS, count_parameters
from ..jobs import JobContext
from ..launch.events import EventLog, ServiceWaits

FIELD = "engines.teachers"


class Teachers:
    """Engines by the name of the teacher."""

    def __init__(
        self, engines: Mapping[str, Engine], canaries: Mapping[str, Canary] | None = None, events: EventLog | None = None
    ) -> None:
        """Teachers that were proved already.

        Args:
            canaries: of those whose engine may become another.
            events: where a teacher that became another is recorded.
        """
        self._engines, self._canaries, self._events = engines, canaries or {}, events

    def items(self) -> Iterator[tuple[str, Engine]]:
        """Every teacher with its engine, in order."""
        yield from self._engines.items()

    def require_unchanged(self, name: str, step: int) -> None:
        """Refuse what a teacher said in a step if it is no longer its checkpoint.

        Raises:
            UserError: exit code 6; the event `wrong_teacher` lists the steps that it may have scored.
        """
        canary = self._canaries.get(name)
        difference = canary.difference(self._engines[name]) if canary is not None else None
        if difference is None:
            return
        if self._events is not None:
            self._events.write("wrong_teacher", teacher=name, steps=[step], trained=[], difference=difference)
        raise UserError(
            f"teacher `{name}` is no longer its checkpoint: {difference}. What it said in step {step} is thrown away, and no "
            "step was trained on it",
            exit_code=ExitCode.FAILED,
            fix="serve the checkpoint again, if you serve it, and launch again: the batch is rolled out anew",
        )


def open_teachers(
    context: JobContext, role: EngineRole, folders: Mapping[str, Path], tokenizer: ChatTokenizer, context_tokens: int
) -> Teachers:
    """The teachers of a job, each proved to be its checkpoint. Collective.

    Args:
        role: what the teachers do.
        folders: their checkpoints.
        context_tokens: most tokens of a sequence that they score.

    Raises:
        UserError: exit code 5. One cannot be reached, or is another.
    """
    services = context.setting("engines", Engines).teachers
    dtype = context.setting("precision", Precision).compute
    own = {name: folder for name, folder in folders.items() if name not in services}
    engines: dict[str, Engine] = open_engines(context, role, own, tokenizer) if own else {}
    canaries = {
        name: _canary_of(name, engine, own[name], tokenizer, dtype)
        for name, engine in engines.items()
        if not engine.capabilities.embedded
    }
    for name in sorted(folders.keys() - own.keys()):
        waits = ServiceWaits(context.run_dir, context.job.folder, f"teacher `{name}`")
        rows = json.loads((folders[name] / "config.json").read_bytes())["vocab_size"]
        engine = served_teacher(name, services[name], tokenizer, rows, waits)
        require_same_server(engine, tokenizer, context_tokens)
        canaries[name] = Canary.of_checkpoint(folders[name], tokenizer, dtype, engine.owner)
        try:
            difference = canaries[name].difference(engine)
        except UserError as error:
            raise unfit(engine, f"cannot score: {error.message}", "mend the service and launch again") from error
        if difference is not None:
            raise unfit(engine, f"is not the checkpoint in {folders[name]}: {difference}", "serve that folder")
        engines[name] = engine
    return Teachers({name: engines[name] for name in folders}, canaries, EventLog(context.run_dir))


def _canary_of(name: str, engine: Engine, folder: Path, tokenizer: ChatTokenizer, dtype: Literal["float32", "bfloat16"]) -> Canary:
    """The canary of a teacher whose engine the job started: what the checkpoint says or, of one that is too large to be asked
    in this process, what its engine says first.

    Raises:
        UserError: exit code 6; the engine does not say what the checkpoint says.
    """
    if count_parameters(folder) > LARGEST_PARAMETERS:
        return Canary(tokenizer, engine.score_tokens(canary_sequences(tokenizer)), dtype)
    canary = Canary.of_checkpoint(folder, tokenizer, dtype, f"teacher `{name}`")
    difference = canary.difference(engine)
    if difference is not None:
        raise UserError(
            f"the engine of teacher `{name}` does not say what {folder} says: {difference}",
            exit_code=ExitCode.FAILED,
            fix="nothing was trained on what it says; check the versions of vLLM and of the model (docs/engines.md)",
        )
    return canary


def served_teacher(name: str, service: Service, tokenizer: ChatTokenizer, rows: int, waits: ServiceWaits) -> ServedEngine:
    """A teacher's engine; nothing is asked yet.

    Raises:
        UserError: exit code 5; the environment does not say where it answers.
    """
    patience = replace(PATIENCE, answer_seconds=service.patience_seconds, total_seconds=service.patience_seconds)
    client = HttpClient(endpoint_of(service, f"{FIELD}.{name}"), patience, at_once=AT_ONCE, watch=waits)
    return ServedEngine(client, service.model, tokenizer, owner=f"teacher `{name}`", vocabulary=rows)
