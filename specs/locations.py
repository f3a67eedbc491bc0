"""Where the paths and URLs of a spec point. A relative path is meant against the spec's folder; anything with a scheme is a URL."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


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
