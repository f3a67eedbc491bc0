"""What a lock does not prove, and what has drifted away from it."""

from collections.abc import Iterator
from pathlib import Path

from ..specs.build import to_json
from ..specs.diagnostics import ExitCode, UserError
from ..specs.locations import local_path
from .canonical import digest, hash_of
from .compilation import Compilation
from .lengths import TOKEN_LENGTHS
from .lock import Lock, installed_versions
from .passes.lower import source_urls


def unproved(compilation: Compilation, lock: Lock | None) -> list[str]:
    """What cannot be said of the data without reading it, or without a tokenizer; clauses that follow "not proved: "."""
    spec = compilation.spec
    assert spec is not None
    urls = source_urls(spec)
    files = {key: url for key, url in urls.items() if key.startswith("source.")}
    found: list[str] = []
    if lock is None and urls:
        found.append(f"that all of {', '.join(sorted(urls))} can be read, and is what a finished job read")
    uncounted = [url for key, url in files.items() if lock is None or key not in lock.sources or not _is_counted(lock, key)]
    if uncounted:
        found.append(f"that the rows of {', '.join(sorted(set(uncounted)))} fit `sequence_tokens` and `limits`")
    remote = [url for url in urls.values() if local_path(url, compilation.root) is None]
    if remote and lock is not None:
        found.append(f"that {', '.join(sorted(set(remote)))} still holds what was locked")
    return found


def _is_counted(lock: Lock, key: str) -> bool:
    return all(name in lock.sources[key].lengths for name in TOKEN_LENGTHS)


def refuse_drift(compilation: Compilation, lock: Lock | None) -> None:
    """Hold a spec and this machine against the lock.

    Raises:
        UserError: there is no lock, or anything differs from it; names all that does.
    """
    shown = compilation.path
    fix = f"look at it, then lock anew: polymath lock {shown}"
    if lock is None:
        raise UserError(f"{shown} has no lock, and --frozen wants one", exit_code=ExitCode.STALE, fix=f"polymath lock {shown}")
    found = [*_drift_of_inputs(compilation, lock), *_drift_of_spec(compilation, lock), *_drift_of_versions(lock)]
    if found:
        raise UserError(f"{shown} is not what was locked: {'; '.join(found)}", exit_code=ExitCode.STALE, fix=fix)


def _drift_of_inputs(compilation: Compilation, lock: Lock) -> Iterator[str]:
    assert compilation.spec is not None
    urls = source_urls(compilation.spec)
    for key, url in urls.items():
        locked = lock.sources.get(key)
        path: Path | None = local_path(url, compilation.root)
        if locked is None:
            yield f"{url} was not locked"
        elif locked.url != url:
            yield f"{key} was {locked.url} and is {url}"
        elif path is not None and path.exists() and (now := hash_of(path)) != locked.sha256:
            yield f"{url} had sha256 {locked.sha256[:12]} and has {now[:12]}"
    yield from (f"{one.url} is no longer used" for key, one in lock.sources.items() if key not in urls)


def _drift_of_spec(compilation: Compilation, lock: Lock) -> Iterator[str]:
    spec = compilation.spec
    assert spec is not None
    data = to_json(spec)
    if lock.seed not in (None, spec.seed):
        yield f"seed was {lock.seed} and is {spec.seed}"
    if lock.spec_digest != digest(data):
        names = [name for name, block in data.items() if name != "seed" and lock.blocks.get(name) != digest(block)]
        if names or lock.seed in (None, spec.seed):
            yield f"the spec says something else in {', '.join(f'`{name}`' for name in names) or 'some block'}"


def _drift_of_versions(lock: Lock) -> Iterator[str]:
    now = installed_versions()
    for package in sorted({*lock.versions, *now}):
        before, after = lock.versions.get(package, "not installed"), now.get(package, "not installed")
        if before != after:
            yield f"{package} was {before} and is {after}"
