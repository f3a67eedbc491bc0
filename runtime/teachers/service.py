"""The teachers of a job: who scores what, and how each is known to be its checkpoint.

A teacher is an engine that the job opens on the checkpoint, or one that somebody serves (`engines.teachers`). One that is served
gets a handshake and a canary before training, and the canary again after every batch that it scored, before the batch is published:
a teacher that is or becomes another model ends the run, and nothing that it said is trained on.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Engines, Precision, Service
from ..data.tokenizers import ChatTokenizer
from ..engines.endpoint import HttpClient, endpoint_of
from ..engines.handshake import Canary, require_same_server, unfit
from ..engines.protocol import Engine
from ..engines.registry import EngineRole, open_engines
from ..engines.served_engine import AT_ONCE, PATIENCE, ServedEngine
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

    def require_unchanged(self, names: Sequence[str], step: int) -> None:
        """Refuse what these teachers said in a step if one of them is no longer its checkpoint.

        Raises:
            UserError: exit code 6; the event `wrong_teacher` lists the steps that it may have scored.
        """
        for name in names:
            canary = self._canaries.get(name)
            difference = canary.difference(self._engines[name]) if canary is not None else None
            if difference is None:
                continue
            if self._events is not None:
                self._events.write("wrong_teacher", teacher=name, steps=[step], trained=[], difference=difference)
            raise UserError(
                f"teacher `{name}` is no longer its checkpoint: {difference}. What it said in step {step} is thrown away, and no "
                "step was trained on it",
                exit_code=ExitCode.FAILED,
                fix="serve the checkpoint again and launch again: the batch is rolled out anew",
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
    canaries: dict[str, Canary] = {}
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


def served_teacher(name: str, service: Service, tokenizer: ChatTokenizer, rows: int, waits: ServiceWaits) -> ServedEngine:
    """A teacher's engine; nothing is asked yet.

    Raises:
        UserError: exit code 5; the environment does not say where it answers.
    """
    patience = replace(PATIENCE, answer_seconds=service.patience_seconds, total_seconds=service.patience_seconds)
    client = HttpClient(endpoint_of(service, f"{FIELD}.{name}"), patience, at_once=AT_ONCE, watch=waits)
    return ServedEngine(client, service.model, tokenizer, owner=f"teacher `{name}`", vocabulary=rows)
