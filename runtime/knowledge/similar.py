"""Near-duplicate tasks in the graph itself: MinHash signatures in tables, so that memory does not grow with the number of tasks."""

import numpy as np

from ..data.near_duplicates import BANDS, ROWS, Signature, signature, similarity
from .graph import GraphStore

THRESHOLD = 0.8  # estimated Jaccard similarity of the instructions' word shingles


def is_new(store: GraphStore, name: str, text: str, threshold: float = THRESHOLD) -> bool:
    """Whether no remembered text is nearly the same."""
    if store.sql.execute("SELECT 1 FROM signatures WHERE name = ?", (name,)).fetchone():
        return False
    asked = signature(text)
    query = "SELECT place FROM bands WHERE band = ? AND bucket = ?"
    places = {row[0] for bucket in _buckets(asked) for row in store.sql.execute(query, bucket)}
    for place in places:
        (known,) = store.sql.execute("SELECT signature FROM signatures WHERE place = ?", (place,)).fetchone()
        if similarity(asked, np.frombuffer(known, dtype=np.uint32)) >= threshold:
            return False
    return True


def remember(store: GraphStore, name: str, text: str) -> None:
    """Remember a text under its name."""
    asked = signature(text)
    row = store.sql.execute("INSERT INTO signatures (name, signature) VALUES (?, ?)", (name, asked.tobytes()))
    store.sql.executemany("INSERT INTO bands VALUES (?, ?, ?)", [(*bucket, row.lastrowid) for bucket in _buckets(asked)])


def _buckets(asked: Signature) -> list[tuple[int, bytes]]:
    return [(band, asked[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]
