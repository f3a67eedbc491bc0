"""Where the paths and URLs of a spec point. A relative path is meant against the spec's folder; anything with a scheme is a URL."""

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from .hints import suggest

LOCATIONS = (  # every field of the language that holds a path or URL; installed worlds add theirs
    ("model", "checkpoint"),
    ("model", "tokenizer"),
    ("domains", "*", "trajectories", "*", "path"),
    ("storage", "runs"),
    *(("domains", "*", "settings", name) for name in ("answers", "data", "documents")),  # of the built-in worlds, `worlds.py`
)
_WORDS = re.compile(r"random|from-checkpoint|builtin:.*")  # values of these fields that are no place
SECRET = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")  # user and password of a URL
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(location: str) -> bool:
    """Whether a location has a scheme."""
    return _SCHEME.match(location) is not None


def is_place(path: str, value: object) -> bool:
    """Whether the value of a spec at a path, such as `domains.a.trajectories[0].path`, says where something lies."""
    parts = path.replace("[", ".").replace("]", "").split(".")
    fits = any(
        len(parts) == len(location) and all(step in ("*", part) for step, part in zip(location, parts, strict=True))
        for location in LOCATIONS
    )
    return fits and isinstance(value, str) and not _WORDS.fullmatch(value)


def without_secrets(text: str) -> str:
    """A text with the passwords of its URLs starred out, as long as before."""
    return SECRET.sub(lambda found: "*" * len(found[0]), text)


def with_secret(data: dict[str, Any], more: Iterable[tuple[str, ...]] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of a spec's data whose URL holds a password."""
    for location in (*LOCATIONS, *more):
        yield from _with_secret(data, location, ())


def _with_secret(here: Any, location: tuple[str, ...], path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if not location:
        if isinstance(here, str) and SECRET.search(here):
            yield path
        return
    for key, value in _steps(here, location[0]):
        yield from _with_secret(value, location[1:], (*path, key))


def _steps(here: Any, step: str) -> list[tuple[str | int, Any]]:
    """What a step of a location leads to."""
    if isinstance(here, dict):
        data = cast(dict[str, Any], here)
        return [(key, data[key]) for key in data if step in ("*", key)]
    return list(enumerate(cast(list[Any], here))) if isinstance(here, list) and step == "*" else []


def rebase(data: dict[str, Any], folder: str, more: Iterable[tuple[str, ...]] = ()) -> None:
    """Let the relative paths of a spec's data, written in `folder` below the root, mean the same from the root.

    `more` are locations beyond the language's: those of installed worlds.
    """
    if folder:
        for location in (*LOCATIONS, *more):
            _rebase(data, location, folder)


def _rebase(here: Any, location: tuple[str, ...], folder: str) -> None:
    for key, value in _steps(here, location[0]):
        if location[1:]:
            _rebase(value, location[1:], folder)
        elif isinstance(value, str) and not (_WORDS.fullmatch(value) or is_url(value) or value.startswith(("/", "~"))):
            here[key] = posixpath.normpath(posixpath.join(folder, value))


def local_path(url: str, root: Path) -> Path | None:
    """The file or folder on this machine, or None where fsspec must fetch it."""
    if url.startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    if _SCHEME.match(url):
        return None
    return root / Path(url).expanduser()


def absolute_url(url: str, root: Path) -> str:
    """The URL or absolute path that fsspec can open from anywhere."""
    path = local_path(url, root)
    return url if path is None else str(path)


def near(path: Path, url: str, otherwise: str = "paths are relative to the spec's folder; write another, or --set it") -> str:
    """What to do about a path that does not exist: the one beside it that was likely meant, or `otherwise`."""
    try:
        siblings = sorted(one.name for one in path.parent.iterdir() if not one.name.startswith("."))
    except (OSError, ValueError):
        siblings = []
    guess = suggest(path.name, siblings)
    if guess:
        return f"did you mean `{url.rstrip('/').removesuffix(path.name)}{guess}`?"
    return otherwise
