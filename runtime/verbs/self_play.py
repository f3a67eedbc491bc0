"""self-play: let a generator write tasks over a graph, solve them, and keep what passes every check."""

import argparse
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from ...specs.generators import GENERATOR_WORLDS
from ...specs.locations import is_url
from ...specs.self_play import PLAYERS, Budget
from .form import Verb, local_file, number, print_json, whole_number

PROGRESS_EVERY = 50  # proposals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("generator", choices=[*GENERATOR_WORLDS], help="what writes the tasks")
    parser.add_argument(
        "graph", type=local_file, help="graph to draw from and to write back to; filled by the generator where it is empty"
    )
    parser.add_argument(
        "--output", "-o", required=True, metavar="FILE", help="path or URL of the accepted trajectories, JSON Lines"
    )
    parser.add_argument("--accepted", type=whole_number(1), default=100, help="accepted tasks that are wanted (default 100)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the generator")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="seed of everything random (default 0)")
    parser.add_argument("--attempts", type=whole_number(1), default=2, help="attempts at each task (default 2)")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=2, help="tasks proposed of a region until one is accepted (default 2)"
    )
    parser.add_argument("--turns", type=whole_number(1), default=64, help="most turns of an episode (default 64)")
    parser.add_argument("--context-tokens", type=whole_number(8), default=131_072, help="most tokens of a context (default 131072)")
    parser.add_argument("--slip-rate", type=number(1), default=0.0, help="how often the scripted solver slips (default 0)")
    for role in PLAYERS:
        parser.add_argument(f"--{role}", metavar="URL_ENV:MODEL", help=f"an OpenAI-compatible endpoint as {role}; else a program")
    parser.add_argument("--key-env", help="variable that holds the endpoints' key")
    parser.add_argument("--remote", action="store_true", help="consent to send tasks and episodes to another machine")
    parser.add_argument("--most-tokens", type=whole_number(1), help="tokens that the endpoints may read and write in all")
    parser.add_argument("--most-money", type=number(above_zero=True), help="money that they may cost, in the unit of --prices")
    parser.add_argument("--prices", default="0,0", metavar="READ,WRITTEN", help="prices of a million tokens")
    parser.add_argument("--per-minute", type=number(above_zero=True), help="most requests in a minute")


def run(options: argparse.Namespace) -> int:
    """Write tasks over a graph, solve them, and keep what passes every check; a later run goes on where this one stops."""
    import sys

    from ..files import check_output
    from ..knowledge.generators.registry import make_generator
    from ..knowledge.graph import GraphStore
    from ..knowledge.player import Bounds, Player
    from ..knowledge.records import write_records
    from ..knowledge.roles import Roles, Spending
    from ..knowledge.selfplay import NOTHING, Goal, Report, accepted, self_play

    def on_progress(report: Report) -> None:
        if report.proposed % PROGRESS_EVERY == 0:
            print(f"{report.accepted} of {options.accepted} accepted, {report.proposed} proposed", file=sys.stderr)

    if not is_url(options.output):
        check_output(Path(options.output), f"{options.generator}.jsonl")
    settings = _settings(options.set)
    if "graph" in settings:
        raise UserError("--set graph is not read here", exit_code=ExitCode.USAGE, fix="name the graph itself, after the generator")
    spending = Spending(_budget(options))
    models = {role: _model(options, role) for role in PLAYERS}
    with GraphStore.create(options.graph) as store:
        generator = make_generator(options.generator, settings, store)
        goal = Goal(accepted=options.accepted, seed=options.seed, attempts=options.attempts, rounds=options.rounds)
        roles = Roles(**models, spending=spending, slip_rate=options.slip_rate)
        bounds = Bounds(turns=options.turns, context_tokens=options.context_tokens)
        report = self_play(generator, roles, goal, Player(bounds), on_progress)
        written = write_records(options.output, accepted(generator))
    if options.json:
        print_json({"ok": not report.stopped, "written": written, **report.as_json()})
    else:
        print(f"{written} trajectories of {report.proposed} proposals are in {options.output}")
        for name, counts in (("outcomes", report.outcomes), ("refused", report.refused), ("ended", report.statuses)):
            print(f"{name}: {', '.join(f'{count} {what}' for what, count in sorted(counts.items())) or 'none'}")
        if report.stopped:
            print(f"stopped early: {report.stopped}", file=sys.stderr)
            if report.outcomes[NOTHING] == report.proposed:
                what = f"{options.graph} gives {options.generator} nothing to ask"
                print(f"  = {what}: docs/trajectories.md says what it needs", file=sys.stderr)
    return ExitCode.FAILED if report.stopped else ExitCode.OK


def _settings(texts: list[str]) -> dict[str, Any]:
    import json

    found = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark:
            raise UserError(f"--set {text} is not NAME=VALUE", exit_code=ExitCode.USAGE)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _budget(options: argparse.Namespace) -> Budget:
    try:
        read, written = map(number(), options.prices.split(","))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"--prices {options.prices} is not READ,WRITTEN", exit_code=ExitCode.USAGE) from error
    if options.most_money is not None and not (read or written):
        raise UserError("--most-money bounds nothing without prices", exit_code=ExitCode.USAGE, fix="add --prices READ,WRITTEN")
    return Budget(
        tokens=options.most_tokens,
        money=options.most_money,
        read_price=read,
        written_price=written,
        requests_per_minute=options.per_minute,
    )


def _model(options: argparse.Namespace, role: str) -> Any:
    from ...specs.machine import Service
    from ..engines.endpoint import endpoint_of
    from ..knowledge.endpoint_chat import EndpointChat

    if (text := getattr(options, role)) is None:
        return None
    variable, mark, model = text.partition(":")
    if not mark or not model:
        raise UserError(f"--{role} {text} is not URL_ENV:MODEL", exit_code=ExitCode.USAGE)
    service = Service(url_env=variable, model=model, key_env=options.key_env, remote=options.remote)
    return EndpointChat(endpoint_of(service, f"--{role}"), model)


VERB = Verb(
    name="self-play", help="let a generator write tasks, solve them, and keep what passes", add_arguments=add_arguments, run=run
)
