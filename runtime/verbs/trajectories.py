"""trajectories: look at sets of trajectories, change their form, clean them, compare them with held-out tasks, describe them."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...specs.diagnostics import ExitCode, UserError
from .form import Verb, number, print_json, whole_number

FORMS = ("records", "openai", "sharegpt", "parquet")
SETS = "trajectory files: records, chat rows or ShareGPT rows in JSON Lines, or Parquet files of ours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, act: Callable[[argparse.Namespace], int], paths: str, output: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=act.__doc__, description=act.__doc__)
        added.set_defaults(act=act)
        added.add_argument("paths", nargs="+", metavar="PATH", help=paths)
        added.add_argument("-o", "--output", type=Path, help=output)
        added.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        return added

    view = action("view", _view, "trajectory files, graphs, or the folder of a ledger", "the page (default: named after the first)")
    view.add_argument("--tokenizer", default="builtin:bytes", help="what counts tokens, a built-in name or a folder")
    view.add_argument("--graph", help="the graph that the evidence lies in, for its names")
    view.add_argument("--limit", type=whole_number(0), default=200, help="most episodes with a timeline (default 200)")

    convert = action("convert", _convert, SETS, "the file (default: beside the first, named after it)")
    convert.add_argument(
        "--to", required=True, choices=FORMS, help="records of ours, OpenAI's chat rows, ShareGPT rows, or Parquet"
    )

    check = action("check", _check, "the spec", "where the report goes (default: it is printed alone)")
    check.add_argument("--run", dest="run_folder", type=Path, help="a run, whose own demonstrations are compared too")
    check.add_argument(
        "--threshold", type=number(1, above_zero=True), default=0.8, help="similarity from which texts are the same (default 0.8)"
    )

    clean = action("clean", _clean, SETS, "the copy (default: beside the first)")
    clean.add_argument(
        "--threshold", type=number(1, above_zero=True), default=0.8, help="similarity from which texts are the same (default 0.8)"
    )
    clean.add_argument("--licence", help="SPDX name for records that state no licence")

    card = action("card", _card, SETS, "the card (default: beside the first)")
    card.add_argument("--contamination", type=Path, help="a report that check wrote with --output")


def run(options: argparse.Namespace) -> int:
    """Look at sets of trajectories, change their form, clean them, compare them with held-out tasks, and describe them."""
    return options.act(options)


def _view(options: argparse.Namespace) -> int:
    """Write one page to look at."""
    from ...specs.model import Model
    from ..data.tokenizers import BUILTIN_FOLDERS, load_tokenizer, load_tokenizer_folder
    from ..files import check_output
    from ..knowledge.graph import GraphStore
    from ..report.trajectories.episodes import episodes_of
    from ..report.trajectories.page import write_page

    first = Path(options.paths[0])
    output = options.output or Path(f"{first.name.partition('.')[0] or 'trajectories'}.html")
    check_output(output, "trajectories.html")
    if options.tokenizer.startswith("builtin:"):
        if options.tokenizer not in BUILTIN_FOLDERS:
            fix = f"built in are {', '.join(BUILTIN_FOLDERS)}"
            raise UserError(f"no tokenizer is called {options.tokenizer}", exit_code=ExitCode.USAGE, fix=fix)
        tokenizer = load_tokenizer(Model(family="qwen3_moe", checkpoint="random", tokenizer=options.tokenizer))
    else:
        tokenizer = load_tokenizer_folder(Path(options.tokenizer))
    graph = GraphStore.open(options.graph) if options.graph else None
    episodes = (one for source in options.paths for one in episodes_of(source, tokenizer, graph))
    title = ", ".join(Path(path).name for path in options.paths)
    counts = write_page(output, title, episodes, counted_by=options.tokenizer, most=options.limit)
    return _say(options, {"ok": True, "page": str(output), **counts}, str(output))


def _convert(options: argparse.Namespace) -> int:
    """Write the same trajectories in another form; nothing is lost."""
    from ..knowledge.conversions import read_any, to_openai, to_sharegpt, write_parquet
    from ..knowledge.records import write_records, write_rows

    write = {
        "records": write_records,
        "openai": lambda url, records: write_rows(url, map(to_openai, records)),
        "sharegpt": lambda url, records: write_rows(url, map(to_sharegpt, records)),
        "parquet": write_parquet,
    }[options.to]
    ending = ".parquet" if options.to == "parquet" else f".{options.to}.jsonl"
    output, count = _written(options, ending, write, (record for path in options.paths for record in read_any(path)))
    return _say(options, {"ok": True, "output": str(output), "records": count}, f"{output}: {count} records")


def _check(options: argparse.Namespace) -> int:
    """Say whether training data holds held-out tasks."""
    from ..files import check_output
    from ..hygiene.contamination import report, summary

    if len(options.paths) != 1:
        raise UserError("check takes one spec", exit_code=ExitCode.USAGE, fix="run it once for each")
    if options.output is not None:
        check_output(options.output, "contamination.json")
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
    """Write a copy without secrets, personal data and near-duplicates."""
    from ..hygiene.clean import Cleaning, clean
    from ..knowledge.records import write_records

    cleaning = Cleaning()
    records = clean(options.paths, cleaning, options.threshold, options.licence)
    output, _ = _written(options, ".clean.jsonl", write_records, records)
    found = cleaning.as_json()
    replaced = ", ".join(f"{count} {name}" for name, count in found["scrubbed"].items()) or "nothing"
    text = f"{output}: kept {cleaning.kept} of {cleaning.rows} records, left out {cleaning.duplicates} near-duplicates"
    text += f"; replaced {replaced}"
    if cleaning.without_licence:
        text += f"; {cleaning.without_licence} records state no licence (--licence states one)"
    return _say(options, {"ok": True, "output": str(output), **found}, text)


def _card(options: argparse.Namespace) -> int:
    """Write a dataset card."""
    from ..files import check_output, unreadable, write_text
    from ..hygiene.card import contents_of, write_card

    first = Path(options.paths[0])
    output = options.output or first.with_name(f"{first.stem}.card.md")
    check_output(output, f"{first.stem}.card.md")
    contamination = None
    if options.contamination is not None:
        try:
            contamination = json.loads(options.contamination.read_text(encoding="utf-8"))
        except OSError as error:
            raise unreadable(str(options.contamination), error) from error
        except ValueError:
            contamination = None
        if not isinstance(contamination, dict) or not contamination.keys() >= {"threshold", "heldout_tasks", "sources"}:
            fix = "polymath trajectories check SPEC -o contamination.json writes one"
            raise UserError(f"{options.contamination} is no report of check", exit_code=ExitCode.USAGE, fix=fix)
    found = contents_of(options.paths)
    write_text(output, write_card(first.stem, found, contamination))
    return _say(options, {"ok": True, "card": str(output), "rows": found.rows}, str(output))


def _written(
    options: argparse.Namespace, ending: str, write: Callable[[str, Iterable[Any]], int], records: Iterable[Any]
) -> tuple[Path, int]:
    """Where records went, whole or not at all, and how many they were."""
    from ..files import check_output

    first = Path(options.paths[0])
    output: Path = options.output or first.with_name(f"{first.stem}{ending}")
    check_output(output, f"{first.stem}{ending}")
    if output.resolve() in [Path(one).resolve() for one in options.paths]:
        raise UserError(f"{output} would overwrite what is read", exit_code=ExitCode.USAGE, fix="name another with -o")
    staging = output.with_name(f".staging-{output.name}")
    try:
        count = write(str(staging), records)
        staging.replace(output)
    finally:
        staging.unlink(missing_ok=True)
    return output, count


def _say(options: argparse.Namespace, found: dict[str, Any], text: str) -> int:
    if options.json:
        print_json(found)
    else:
        print(text)
    return ExitCode.OK


VERB = Verb(
    name="trajectories",
    help="look at trajectories, change their form, clean, compare and describe them",
    add_arguments=add_arguments,
    run=run,
)
