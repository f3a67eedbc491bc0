"""Self-play inside a job: the graph in the job's folder, who plays the roles, and how ranks share the proposals.

The first rank's graph is the job's and stays in its folder, so that an interrupted job goes on where it was. Every other rank plays
over a copy of it, which it keeps equal by writing what all ranks play; what ranks tell each other goes through files. The graph and
the trajectories do not depend on the number of ranks, as long as no model behind an endpoint plays: those do not repeat themselves.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...specs.diagnostics import ExitCode, UserError
from ...specs.machine import Service
from ...specs.model import Domain, Limits, TrajectorySource
from ...specs.self_play import PLAYERS, SelfPlay
from ..data.renderer import Renderer
from ..data.tokenizers import load_tokenizer_folder
from ..engines.endpoint import endpoint_of
from ..engines.protocol import SamplingSettings
from ..engines.registry import open_engines
from ..files import staging_folder
from ..jobs import JobContext
from ..knowledge.endpoint_chat import EndpointChat
from ..knowledge.generators.base import TaskGenerator
from ..knowledge.generators.registry import make_generator
from ..knowledge.graph import GraphStore
from ..knowledge.player import Bounds, Player
from ..knowledge.proposals import Alone, Proposal, proposal_from_json
from ..knowledge.records import write_records
from ..knowledge.roles import ChatModel, EngineChat, Roles, Spending
from ..knowledge.selfplay import Goal, Report, accepted, self_play
from ..simulated_user import EndpointUser, UserSilent, user_endpoint
from ..worlds.protocol import Message
from ..worlds.registry import verified_settings
from .on_policy import derived_seed

MOST_TURNS = 512  # of an episode that a program plays


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source that is played."""

    name: str  # of the domain
    domain: Domain
    source: TrajectorySource


class Ranks:
    """The ranks of a job as a crew."""

    def __init__(self, context: JobContext, folder: Path) -> None:
        """`folder` is seen by all ranks, and is of this self-play alone."""
        self.rank, self.size = context.rank, context.world_size
        self._context, self._folder, self._round = context, folder, 0
        folder.mkdir(exist_ok=True)

    def share(self, own: Sequence[Proposal]) -> Sequence[Proposal]:
        """Everybody's, in the order of their ranks. Collective."""
        text = json.dumps(
            [one.as_json() for one in own], ensure_ascii=False
        )  # keys keep their order: that of a tool's parameters means something
        self._file(self._round, self.rank).write_text(text, encoding="utf-8")
        self._context.barrier()
        everybody = [json.loads(self._file(self._round, rank).read_text(encoding="utf-8")) for rank in range(self.size)]
        self._file(self._round - 1, self.rank).unlink(missing_ok=True)  # all have read it, or they would not be here
        self._round += 1
        return [proposal_from_json(one) for of_rank in everybody for one in of_rank]

    def _file(self, number: int, rank: int) -> Path:
        return self._folder / f"{number}.{rank}.json"


def play(context: JobContext, one: Source, parts: Path, path: Path, on_progress: Callable[[Report], None]) -> Report:
    """Play until there are enough accepted episodes; says what became of the proposals. Collective.

    Args:
        parts: a folder that all ranks see; each has emptied `<rank>` in it.
        path: of the file for this rank's episodes: all of them on the first rank, none on the others.

    Raises:
        UserError: too few proposals are accepted (exit 3), or a budget is used up (exit 6).
    """
    assert one.source.synthesize is not None
    generator = _generator(context, one, parts)
    block = one.source.self_play or SelfPlay()
    seed = derived_seed(context.job.seed, one.name, one.source.name)
    goal = Goal(accepted=one.source.synthesize, seed=seed, attempts=block.attempts, rounds=block.rounds)
    roles, player = _players(context, one, block)
    crew = Ranks(context, parts / f"{one.name}.{one.source.name}") if context.world_size > 1 else Alone()
    with generator.store:
        report = self_play(generator, roles, goal, player, on_progress, crew)
        write_records(str(path), accepted(generator) if context.is_first_rank else ())
    if report.is_out_of_budget:
        raise UserError(
            f"self-play of `{one.name}.{one.source.name}`: {report.stopped}; {report.accepted} of {goal.accepted} are accepted",
            exit_code=ExitCode.FAILED,
            fix="raise `self_play.budget` and launch again: it goes on where it is",
        )
    if report.stopped:
        raise UserError(
            f"domain `{one.name}`: {report.stopped}",
            exit_code=ExitCode.SPEC,
            fix="ask for fewer, lower `slip_rate` or `habit_rate`, let another model play, or enlarge the world's settings",
        )
    return report


def _generator(context: JobContext, one: Source, parts: Path) -> TaskGenerator:
    """The generator of a domain over a graph of its own: a copy of the user's, or one that it fills. Collective."""
    assert one.domain.world is not None
    settings = verified_settings(context, one.name, one.domain)
    path = context.folder / f"{one.name}.{one.source.name}.sqlite"
    generator: TaskGenerator | None = None
    if context.is_first_rank:
        if settings.get("graph") and not path.exists():
            with GraphStore.open(settings["graph"]) as given:
                given.publish(str(staging_folder(path)))
            staging_folder(path).rename(path)
        generator = make_generator(one.domain.world, settings, GraphStore.create(path))
        generator.store.commit()
    context.barrier()
    if generator is None:
        own = parts / str(context.rank) / path.name
        with GraphStore.open(str(path)) as given:
            given.publish(str(own))
        generator = make_generator(one.domain.world, settings, GraphStore.create(own))
    context.barrier()  # nobody copies a graph that is written to
    return generator


def _players(context: JobContext, one: Source, block: SelfPlay) -> tuple[Roles, Player]:
    """Who plays, and within which bounds. Collective.

    Raises:
        UserError: the environment does not say where an endpoint answers, or an engine does not come up.
    """
    bounds, models = Player(Bounds(turns=MOST_TURNS)), dict[str, ChatModel]()
    limits = one.domain.limits
    if one.source.is_played:
        assert limits is not None
        for role, service in block.services.items():
            models[role] = EndpointChat(
                endpoint_of(service, f"self_play.{role}"),
                service.model,
                sampling=block.sampling,
                response_tokens=limits.response_tokens,
                patience_seconds=service.patience_seconds,
            )
        if one.source.has_model_solver:
            bounds = Player(_bounds(one.domain, limits))
    if block.models:
        assert limits is not None
        folders = {name: context.input_folder(f"model.{name}") for name in sorted(set(block.models.values()))}
        tokenizer = load_tokenizer_folder(next(iter(folders.values())))
        engines, renderer = open_engines(context, "rollout", folders, tokenizer), Renderer(tokenizer)
        sampling = SamplingSettings(temperature=block.sampling.temperature, top_p=block.sampling.top_p)
        bounds.count = lambda text: len(tokenizer.literal_ids(text))
        for role, name in block.models.items():
            models[role] = EngineChat(
                name,
                engines[name],
                renderer.offering,
                sampling,
                response_tokens=limits.response_tokens,
                context_tokens=limits.context_tokens,
            )
    spending = Spending(block.budget, processes=context.world_size)
    roles = Roles(
        **{role: models.get(role) for role in PLAYERS},
        user=_User(one.name, one.domain.user) if one.source.has_model_solver and one.domain.user is not None else None,
        spending=spending,
        slip_rate=one.source.slip_rate,
        guess_rate=one.source.habit_rate,
    )
    return roles, bounds


def _bounds(domain: Domain, limits: Limits) -> Bounds:
    """What an episode of a model may take. An answer is forced whether or not `finalize` asks for it in other words."""
    bounds = Bounds(
        turns=limits.turns,
        tool_calls=limits.tool_calls,
        wall_seconds=limits.wall_seconds,
        context_tokens=limits.context_tokens,
    )
    if limits.finalize is not None:
        bounds = replace(bounds, ask=limits.finalize.prompt)
    return bounds


class _User:
    """The simulated user of a domain. One that is silent ends the job, which can go on, as a silent player does."""

    def __init__(self, domain: str, service: Service) -> None:
        self._user = EndpointUser(user_endpoint(domain, service), service)

    def reply(self, brief: str, dialogue: Sequence[Message]) -> str | None:
        try:
            return self._user.reply(brief, dialogue)
        except UserSilent as silent:
            fix = "mend the endpoint, its model or its key, and launch again: what was finished is kept"
            raise UserError(str(silent), exit_code=ExitCode.FAILED, fix=fix) from silent
