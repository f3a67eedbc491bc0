"""Canonical JSON and the digests made of it, and the hashes of files and folders.

The encoder refuses what it does not know, NaN and infinities: a permissive fallback would silently fork a digest.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..specs.diagnostics import ExitCode, UserError

CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """Encode with sorted keys and one spelling per value.

    Raises:
        TypeError: a value is not a string, number, boolean, None, list or mapping with string keys.
        ValueError: a number is not finite.
    """
    _refuse_unknown(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def readable_json(value: Any) -> str:
    """The same values, indented for people and ending in a newline."""
    _refuse_unknown(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def digest(value: Any) -> str:
    """The sha256 of the canonical form, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def hash_of(path: Path) -> str:
    """The hash of a file; of a folder, that of its files' names and hashes.

    Raises:
        UserError: it cannot be read.
    """
    if path.is_dir():
        return digest({file.relative_to(path).as_posix(): hash_of(file) for file in files_below(path)})
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", exit_code=ExitCode.SPEC) from error
    return content.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and its folders, sorted."""
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _refuse_unknown(value: Any) -> None:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"not a finite number: {value}")
        return
    if isinstance(value, Mapping):
        for key, item in cast(Mapping[Any, Any], value).items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            _refuse_unknown(item)
        return
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for item in cast(Sequence[Any], value):
            _refuse_unknown(item)
        return
    raise TypeError(f"cannot encode {type(value).__name__}")
