"""A cleaner copy of trajectory files: scrubbed, without near-duplicates, and every record with its licence."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..data.near_duplicates import NearDuplicates
from ..knowledge.conversions import read_any
from ..knowledge.records import TrajectoryRecord
from .scrub import Scrubber


@dataclass(slots=True)
class Cleaning:
    """What was done; `rows == kept + duplicates`."""

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    scrubbed: Counter[str] = field(default_factory=Counter)  # replacements by rule
    without_licence: int = 0  # of the kept

    def as_json(self) -> dict[str, Any]:
        """For the card and for `--json`."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "near_duplicates": self.duplicates,
            "scrubbed": dict(sorted(self.scrubbed.items())),
            "without_licence": self.without_licence,
        }


def clean(urls: Iterable[str], cleaning: Cleaning, threshold: float, licence: str | None) -> Iterator[TrajectoryRecord]:
    """The records of files in order, cleaned; `cleaning` is counted up on the way.

    Args:
        threshold: similarity of whole conversations from which the later one is left out.
        licence: SPDX name for records that state none.

    Raises:
        UserError: exit code 3; a file cannot be read or has a bad row.
    """
    seen, scrubber = NearDuplicates(threshold=threshold), Scrubber(counts=cleaning.scrubbed)
    for url in urls:
        for record in read_any(url):
            cleaning.rows += 1
            scrubbed = scrubber.scrub(record)
            if not seen.is_new(str(cleaning.rows), conversation_text(scrubbed)):
                cleaning.duplicates += 1
                continue
            cleaning.kept += 1
            if scrubbed.provenance.get("licence") is None:
                if licence is None:
                    cleaning.without_licence += 1
                else:
                    scrubbed = scrubbed.with_provenance(licence=licence)
            yield scrubbed


def conversation_text(record: TrajectoryRecord) -> str:
    """What two records are compared by: all that was said, and every call."""
    parts = [str(message.get("content") or "") for message in record.messages]
    calls = [call["function"] for message in record.messages for call in message.get("tool_calls") or ()]
    return "\n".join([*parts, *(f"{one['name']} {one['arguments']}" for one in calls)])
