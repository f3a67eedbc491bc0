"""Reading a JSONL file once: its hash, how long its rows are, and every row that is not of the promised form."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..specs.build import is_finite_number
from ..specs.locations import local_path
from ..specs.model import TrajectorySource
from .canonical import CHUNK_BYTES
from .lengths import Quantiles, quantiles, row_lengths

ROW_FIELDS = {"openai": (("messages",), ("traj",)), "question_answer": (("question", "answer"),)}  # any one group suffices
MISTAKES_PER_FILE = 5
FIELDS_SHOWN = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A file as it was read."""

    sha256: str
    bytes: int
    rows: int
    lengths: Mapping[str, Quantiles]


class BadSource(Exception):
    """What is wrong with an input: code, detail and fix of each mistake."""

    def __init__(self, *mistakes: tuple[str, str, str | None]) -> None:
        super().__init__(mistakes)
        self.mistakes = mistakes


def _open(url: str, root: Path) -> AbstractContextManager[BinaryIO]:
    path = local_path(url, root)
    if path is not None:
        return path.open("rb")
    import fsspec  # pyright: ignore[reportMissingTypeStubs]  (only for URLs: it costs a tenth of a second)

    return cast(Any, fsspec).open(url, "rb")


def hash_of_url(url: str, root: Path) -> tuple[str, int]:
    """The sha256 and the size of a file.

    Raises:
        BadSource: it cannot be read, or is empty.
    """
    content, size = hashlib.sha256(), 0
    try:
        with _open(url, root) as file:
            while chunk := file.read(CHUNK_BYTES):
                content.update(chunk)
                size += len(chunk)
    except (OSError, ValueError, ImportError) as error:
        raise BadSource(("E0312", f"{url} cannot be read: {error}", None)) from error
    if not size:
        raise BadSource(("E0313", f"{url} is empty", None))
    return content.hexdigest(), size


def read_rows(url: str, root: Path, source: TrajectorySource) -> Rows:
    """Hash a JSONL file and look at every row.

    Raises:
        BadSource: it cannot be read or is empty, or a row is not what its format promises.
    """
    content, size, rows = hashlib.sha256(), 0, 0
    mistakes: list[tuple[str, str, str | None]] = []
    rewards: list[float] = []
    lengths: dict[str, list[int]] = {}
    try:
        with _open(url, root) as file:
            for number, line in enumerate(file, 1):
                content.update(line)
                size += len(line)
                if not line.strip():
                    continue
                rows += 1
                row = _row(line)
                fault, fix = (row, None) if isinstance(row, str) else _form_fault(row, source.format)
                if fault:
                    mistakes.append(("E0314", f"{url}, row {number}: {fault}", fix))
                elif isinstance(row, dict):
                    if row.get("reward") is not None:
                        rewards.append(row["reward"])
                    for name, length in row_lengths(row).items():
                        lengths.setdefault(name, []).append(length)
                if len(mistakes) == MISTAKES_PER_FILE:
                    break
    except (OSError, ValueError, ImportError) as error:
        raise BadSource(("E0312", f"{url} cannot be read: {error}", None)) from error
    if mistakes:
        raise BadSource(*mistakes)
    if not rows:
        raise BadSource(("E0313", f"{url} holds no row", "one row of JSON on every line"))
    if source.minimum_reward is not None:
        _check_filter(url, source.minimum_reward, rewards, rows)
    found = {name: quantiles(values) for name, values in lengths.items()}
    return Rows(sha256=content.hexdigest(), bytes=size, rows=rows, lengths=found)


def _check_filter(url: str, minimum: float, rewards: Sequence[float], rows: int) -> None:
    """A filter that nothing passes leaves nothing to train on; one that no row can fail filters nothing."""
    if not rewards:
        detail = f"no row of {url} has a `reward`, so `minimum_reward` would filter nothing"
        raise BadSource(("E0320", detail, "remove `minimum_reward`, or write each row's `reward` into it"))
    if len(rewards) == rows and max(rewards) < minimum:
        detail = f"`minimum_reward` is {minimum:g}, and the largest of {url} is {max(rewards):g}"
        raise BadSource(("E0320", detail, f"at most {max(rewards):g}"))


def _row(line: bytes) -> dict[str, Any] | str:
    """A row, or what is wrong with it."""
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"not valid JSON at column {error.colno}: {error.msg}"
    except _NotAJsonNumber as error:
        return f"not valid JSON: {error} is no number"
    except (ValueError, RecursionError):
        return "not valid JSON: too deep or too large a number"
    if not isinstance(row, dict):
        return "not a JSON object"
    read = cast(dict[str, Any], row)
    if (reward := read.get("reward")) is not None and not is_finite_number(reward):
        return f"`reward` is {json.dumps(reward)[:40]}, not a number"
    return read


class _NotAJsonNumber(ValueError):
    """What Python reads as a number, and JSON does not know."""


def _refuse_constant(text: str) -> None:
    raise _NotAJsonNumber(text)


def _form_fault(row: Mapping[str, Any], format_name: str) -> tuple[str | None, str | None]:
    """What a row lacks that its format promises, and the format or the field that was likely meant."""
    fitting = [name for name, groups in ROW_FIELDS.items() if any(all(field in row for field in group) for group in groups)]
    if format_name in fitting:
        return None, None
    groups = ROW_FIELDS[format_name]
    wanted = " or ".join(" and ".join(f"`{field}`" for field in group) for group in groups)
    fix = f"write `format: {fitting[0]}`" if fitting else None
    if fix is None and row:
        missing = min(([field for field in group if field not in row] for group in groups), key=len)
        fix = f"it has {', '.join(f'`{name[:40]}`' for name in list(row)[:FIELDS_SHOWN])}: rename what is meant by `{missing[0]}`"
    return f"has no {wanted}, which format `{format_name}` wants", fix
