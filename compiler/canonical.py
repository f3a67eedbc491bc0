"""Canonical JSON and the digests made of it.

The encoder refuses what it does not know, NaN and infinities: a permissive fallback would silently fork a digest.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast


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
