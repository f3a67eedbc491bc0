"""lock: read the data once and write down what it was."""

import argparse
from collections.abc import Mapping
from typing import Any

from ...specs.diagnostics import ExitCode
from .form import Verb, print_json, takes_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    takes_spec(parser)
    parser.add_argument(
        "--no-tokens", action="store_true", help="do not count tokens, which loads the tokenizer and renders every row of a file"
    )


def run(options: argparse.Namespace) -> int:
    """Read the data once and write down its hashes, its lengths and the versions of what is installed."""
    from ...compiler.driver import lock_spec
    from ...specs.build import to_json

    locked, path = lock_spec(options.spec, options.set, None if options.no_tokens else TokenCounts())
    if options.json:
        print_json({"ok": True, "path": str(path), **to_json(locked)})
        return ExitCode.OK
    for source in locked.sources.values():
        rows = f"{source.rows} rows, " if source.rows is not None else ""
        print(f"{source.url}: {rows}{source.bytes} bytes, sha256 {source.sha256[:12]}")
        for name, one in source.lengths.items():
            print(f"  {name.replace('_', ' ')}: half at most {one.p50}, 95 % {one.p95}, 99 % {one.p99}, all {one.max}")
    print(f"wrote {path}")
    return ExitCode.OK


class TokenCounts:
    """Counts tokens with the spec's own tokenizer, which is loaded when the first file needs it."""

    def __init__(self) -> None:
        self.tokenizer: Any = None

    def __call__(self, compilation: Any, key: str, source: Any) -> Mapping[str, Any] | None:
        """The quantiles of one file; None where the tokenizer, or what reads it, is not installed here."""
        from ...compiler.lengths import quantiles
        from ...specs.locations import absolute_url
        from ...specs.worlds import locations_of

        try:
            from ..data.lengths import count_tokens, load_spec_tokenizer
            from ..worlds.registry import make_world
        except ImportError:
            return None
        self.tokenizer = self.tokenizer or load_spec_tokenizer(compilation.spec.model, compilation.root)
        if self.tokenizer is None:
            return None
        domain = compilation.spec.domains[key.split(".")[1]]
        places = {field: absolute_url(url, compilation.root) for field, url in locations_of(domain.world, domain.settings).items()}
        tools = make_world(domain.world, {**domain.settings, **places}).tools if domain.world is not None else ()
        counted = count_tokens(self.tokenizer, source, compilation.root, tools)
        return {name: quantiles(values) for name, values in counted.items() if values}


VERB = Verb(name="lock", help="read the data once and write down its hashes and lengths", add_arguments=add_arguments, run=run)
