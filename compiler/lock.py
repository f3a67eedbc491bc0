"""The lock: what a spec's inputs held when they were read once. It stands beside the spec as `<stem>.lock.json`.

It proves what the compiler cannot see in a spec: that every row of the data is JSON of the promised form, and the content hash
by which a finished job is known again. It holds how long the rows are: in characters and turns always, in tokens where the caller
has a tokenizer (`polymath lock` has the runtime's, unless `--no-tokens`; the compiler itself never loads one).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..specs.build import Path as SpecPath
from ..specs.build import from_json, to_json
from ..specs.codes import summary
from ..specs.diagnostics import Diagnostic, ExitCode, SpecInvalid, UserError
from ..specs.locations import local_path
from ..specs.model import Spec, TrajectorySource
from .canonical import digest, files_below, hash_of, readable_json
from .compilation import Compilation
from .lengths import Quantiles
from .passes.lower import source_urls
from .rows import BadSource, hash_of_url, read_rows
from .store import replace_file

LOCK_FORMAT = "polymath.lock/1"
PACKAGES = ("polymath", "torch", "torchtitan", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedSource:
    """One input as it was."""

    url: str
    sha256: str
    bytes: int
    rows: int | None  # of JSONL files; folders have none
    lengths: Mapping[str, Quantiles] = field(default_factory=dict[str, Quantiles])  # of its rows, by what is counted
    tokenizer: str | None = None  # what counted "tokens" and "response_tokens": a built-in name, or the hash of its folder


# Counts the tokens of a file, given its key: what `lengths.TOKEN_LENGTHS` names. None where there is no tokenizer to be had.
TokenCounter = Callable[[Compilation, str, TrajectorySource], Mapping[str, Quantiles] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """A whole lock file."""

    spec_digest: str
    blocks: Mapping[str, str] = field(default_factory=dict[str, str])  # the digest of each block of the spec, to say which changed
    seed: int | None = None
    sources: Mapping[str, LockedSource]  # by key in sources.json
    versions: Mapping[str, str]  # of the packages that were installed
    format: str = LOCK_FORMAT


def lock_path(spec: Path) -> Path:
    """Where the lock of a spec stands."""
    return spec.with_name(f"{spec.stem}.lock.json")


def make_lock(compilation: Compilation, earlier: Lock | None = None, count_tokens: TokenCounter | None = None) -> Lock:
    """Read every input once. What an earlier lock counted of a file and tokenizer that are the same is not counted again.

    Raises:
        SpecInvalid: a file is missing or empty, or a row is not what its format promises; names file, row and line of the spec.
    """
    spec = compilation.spec
    assert spec is not None
    sources: dict[str, LockedSource] = {}
    diagnostics: list[Diagnostic] = []
    for key, url in source_urls(spec).items():
        path, source = _spec_path(spec, key)
        try:
            if source is None:
                sources[key] = _lock_place(url, compilation.root, may_be_file=key.startswith("world."))
            else:
                found = read_rows(url, compilation.root, source)
                sources[key] = LockedSource(url=url, sha256=found.sha256, bytes=found.bytes, rows=found.rows, lengths=found.lengths)
        except BadSource as bad:
            for code, detail, fix in bad.mistakes:
                span = compilation.spans.at(path)
                diagnostics.append(Diagnostic(code=code, summary=summary(code), span=span, detail=detail, fix=fix))
    if diagnostics:
        raise SpecInvalid(diagnostics, compilation.texts)
    data = to_json(spec)
    return Lock(
        spec_digest=digest(data),
        blocks={name: digest(block) for name, block in data.items()},
        seed=spec.seed,
        sources={key: _with_tokens(compilation, key, sources, earlier, count_tokens) for key in sources},
        versions=installed_versions(),
    )


def _with_tokens(
    compilation: Compilation,
    key: str,
    sources: Mapping[str, LockedSource],
    earlier: Lock | None,
    count_tokens: TokenCounter | None,
) -> LockedSource:
    """A source with its lengths in tokens, where they are known or can be counted."""
    spec, here = compilation.spec, sources[key]
    assert spec is not None
    _, source = _spec_path(spec, key)
    if source is None:
        return here
    folder = "model.checkpoint" if spec.model.tokenizer == "from-checkpoint" else "model.tokenizer"
    tokenizer = sources[folder].sha256 if folder in sources else spec.model.tokenizer
    before = earlier.sources.get(key) if earlier is not None else None
    if before is not None and before.tokenizer == tokenizer and before.sha256 == here.sha256:
        return replace(here, lengths={**before.lengths, **here.lengths}, tokenizer=tokenizer)
    counted = count_tokens(compilation, key, source) if count_tokens is not None else None
    return here if counted is None else replace(here, lengths={**here.lengths, **counted}, tokenizer=tokenizer)


def write_lock(lock: Lock, path: Path) -> None:
    """Publish a lock.

    Raises:
        UserError: it cannot be written.
    """
    replace_file(path, readable_json(to_json(lock)))


def read_lock(path: Path) -> Lock | None:
    """The lock of a spec, if there is one.

    Raises:
        UserError: it is malformed.
    """
    if not path.is_file():
        return None
    fix = "delete it, or write it anew with `polymath lock`"
    try:
        lock = from_json(Lock, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a lock: {error}", exit_code=ExitCode.STALE, fix=fix) from error
    if lock.format != LOCK_FORMAT:
        raise UserError(f"{path} has the form {lock.format}, not {LOCK_FORMAT}", exit_code=ExitCode.STALE, fix=fix)
    return lock


def locked_digests(lock: Lock | None, spec: Spec, root: Path, shown: str) -> dict[str, str | None]:
    """The content hash of every input: as locked, or as it is now; None for what is not on this machine and not locked.

    Raises:
        UserError: an input is not what was locked, or is not in the lock.
    """
    urls = source_urls(spec)
    if lock is None:
        paths = {key: local_path(url, root) for key, url in urls.items()}
        return {key: None if path is None or not path.exists() else hash_of(path) for key, path in paths.items()}
    fix = f"read the data anew: polymath lock {shown}"
    for key, url in urls.items():
        locked = lock.sources.get(key)
        if locked is None or locked.url != url:
            raise UserError(f"the lock of {shown} does not know {url}", exit_code=ExitCode.STALE, fix=fix)
        path = local_path(url, root)
        if path is not None and path.exists() and hash_of(path) != locked.sha256:
            raise UserError(f"{url} changed since {shown} was locked", exit_code=ExitCode.STALE, fix=fix)
    return {key: lock.sources[key].sha256 for key in urls}


def _spec_path(spec: Spec, key: str) -> tuple[SpecPath, TrajectorySource | None]:
    """Where the spec names a source, and what it says of the rows; folders have none."""
    parts = key.split(".")
    if parts[0] == "model":
        return ("model", parts[1]), None
    if parts[0] == "world":
        return ("domains", parts[1], "settings", parts[2]), None
    number = int(parts[2])
    return ("domains", parts[1], "trajectories", number, "path"), spec.domains[parts[1]].trajectories[number]


def _lock_place(url: str, root: Path, *, may_be_file: bool) -> LockedSource:
    """A folder on this machine; of what a world reads, also a file anywhere, whose rows are the world's to judge."""
    path = local_path(url, root)
    if may_be_file and (path is None or not path.is_dir()):
        sha256, size = hash_of_url(url, root)
        return LockedSource(url=url, sha256=sha256, bytes=size, rows=None)
    if path is None:
        detail = f"{url}: checkpoints and tokenizers are read from this machine's folders only"
        raise BadSource(("E0312", detail, "copy the folder to this machine"))
    if not path.is_dir():
        raise BadSource(("E0312", f"{url}: there is no such folder on this machine", "copy the folder to this machine"))
    size = sum(file.stat().st_size for file in files_below(path))
    return LockedSource(url=url, sha256=hash_of(path), bytes=size, rows=None)


def installed_versions() -> dict[str, str]:
    """The versions of the packages that decide what is computed."""
    from importlib.metadata import PackageNotFoundError, version  # 15 ms that `validate` need not wait for

    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
