"""trajectories: look at sets of trajectories, clean them, compare them with held-out tasks, and describe them."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from .form import Verb, print_json

ACTIONS = ("view", "check", "clean", "card")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=ACTIONS,
        help="view: one page to look at; check: does training data hold held-out tasks; clean: a copy without secrets and "
        "near-duplicates; card: a dataset card",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="trajectory files, graphs or a ledger; of check, the spec")
    parser.add_argument("-o", "--output", type=Path, help="what to write (default: beside the first path; check prints alone)")
    parser.add_argument("--tokenizer", default="builtin:bytes", help="view: what counts tokens, a built-in name or a folder")
    parser.add_argument("--graph", help="view: the graph that the evidence lies in, for its names")
    parser.add_argument("--limit", type=int, default=200, help="view: most episodes with a timeline (default 200)")
    parser.add_argument("--run", dest="run_folder", type=Path, help="check: a run, whose own demonstrations are compared too")
    parser.add_argument("--threshold", type=float, default=0.8, help="check, clean: similarity from which texts are the same")
    parser.add_argument("--licence", help="clean: SPDX name for records that state no licence")
    parser.add_argument("--contamination", type=Path, help="card: a report that check wrote with --output")


def run(options: argparse.Namespace) -> int:
    """Look at sets of trajectories, clean them, compare them with held-out tasks, and describe them."""
    return {"view": _view, "check": _check, "clean": _clean, "card": _card}[options.action](options)


def _view(options: argparse.Namespace) -> int:
    from ...specs.model import Model
    from ..data.tokenizers import load_tokenizer, load_tokenizer_folder
    from ..knowledge.graph import GraphStore
    from ..report.trajectories.episodes import episodes_of
    from ..report.trajectories.page import write_page

    if options.tokenizer.startswith("builtin:"):
        tokenizer = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer=options.tokenizer))
    else:
        tokenizer = load_tokenizer_folder(Path(options.tokenizer))
    graph = GraphStore.open(options.graph) if options.graph else None
    first = Path(options.paths[0])
    output = options.output or Path(f"{first.name.partition('.')[0] or 'trajectories'}.html")
    episodes = (one for source in options.paths for one in episodes_of(source, tokenizer, graph))
    title = ", ".join(Path(path).name for path in options.paths)
    counts = write_page(output, title, episodes, counted_by=options.tokenizer, most=options.limit)
    return _say(options, {"ok": True, "page": str(output), **counts}, str(output))


def _check(options: argparse.Namespace) -> int:
    from ..hygiene.contamination import report, summary

    if len(options.paths) != 1:
        raise UserError("check takes one spec", exit_code=ExitCode.USAGE)
    heldout, sources = _compare(Path(options.paths[0]), options.run_folder, options.threshold)
    found = report(heldout, sources)
    if options.output is not None:
        from ..files import write_json

        write_json(options.output, found)
    _say(options, {"ok": found["clean"], **found}, summary(found))
    return ExitCode.OK if found["clean"] else ExitCode.SPEC


def _compare(spec_path: Path, run_folder: Path | None, threshold: float) -> tuple[Any, Sequence[Any]]:
    """The held-out tasks of a spec's domains, and what each of its training files holds of them."""
    from ...compiler.driver import check_spec
    from ...specs.locations import absolute_url
    from ...specs.worlds import locations_of
    from ..hygiene.contamination import HeldOut, look_into
    from ..stages.evaluate import heldout_tasks
    from ..worlds.registry import make_world

    checked = check_spec(spec_path)
    spec = checked.spec
    assert spec is not None
    heldout = HeldOut(threshold)
    for name, domain in spec.domains.items():
        if domain.world is None or domain.prompts is None:
            continue
        places = {key: absolute_url(url, checked.root) for key, url in locations_of(domain.world, domain.settings).items()}
        world = make_world(domain.world, {**domain.settings, **places})
        heldout.add_tasks(name, world, heldout_tasks(world, name, domain.prompts.heldout, spec.seed))
    return heldout, [look_into(url, source, heldout) for url, source in _training_files(spec, checked.root, run_folder)]


def _training_files(spec: Any, root: Path, run_folder: Path | None) -> Iterator[tuple[str, Any]]:
    from dataclasses import replace

    from ...specs.locations import absolute_url

    for name, domain in spec.domains.items():
        for source in domain.trajectories:
            if source.path is not None:
                yield absolute_url(source.path, root), replace(source, minimum_reward=None)
            elif run_folder is not None:
                written = sorted(run_folder.glob(f"jobs/synthesize*/trajectories/{name}.{source.name}.jsonl"))
                yield from ((str(path), replace(source, synthesize=None, path=str(path))) for path in written)


def _clean(options: argparse.Namespace) -> int:
    from ..hygiene.clean import Cleaning, clean
    from ..knowledge.records import write_records

    first = Path(options.paths[0])
    output = options.output or first.with_name(f"{first.stem}.clean.jsonl")
    if str(output) in options.paths:
        raise UserError(f"{output} would overwrite what is read", exit_code=ExitCode.USAGE, fix="name another with -o")
    cleaning = Cleaning()
    staging = output.with_name(f".staging-{output.name}")
    try:
        write_records(str(staging), clean(options.paths, cleaning, options.threshold, options.licence))
        staging.replace(output)
    finally:
        staging.unlink(missing_ok=True)
    found = cleaning.as_json()
    replaced = ", ".join(f"{count} {name}" for name, count in found["scrubbed"].items()) or "nothing"
    text = f"{output}: kept {cleaning.kept} of {cleaning.rows} records, left out {cleaning.duplicates} near-duplicates"
    text += f"; replaced {replaced}"
    if cleaning.without_licence:
        text += f"; {cleaning.without_licence} records state no licence (--licence states one)"
    return _say(options, {"ok": True, "output": str(output), **found}, text)


def _card(options: argparse.Namespace) -> int:
    from ..files import write_text
    from ..hygiene.card import contents_of, write_card

    first = Path(options.paths[0])
    output = options.output or first.with_name(f"{first.stem}.card.md")
    contamination = None
    if options.contamination is not None:
        try:
            contamination = json.loads(options.contamination.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{options.contamination} is no report of check: {error}", exit_code=ExitCode.USAGE) from error
    found = contents_of(options.paths)
    write_text(output, write_card(first.stem, found, contamination))
    return _say(options, {"ok": True, "card": str(output), "rows": found.rows}, str(output))


def _say(options: argparse.Namespace, found: dict[str, Any], text: str) -> int:
    if options.json:
        print_json(found)
    else:
        print(text)
    return ExitCode.OK


VERB = Verb(
    name="trajectories", help="look at trajectories, clean, compare and describe them", add_arguments=add_arguments, run=run
)
