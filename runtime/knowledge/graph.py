"""The knowledge-action graph `G = (corpus, actions, observations, verifiers)` of a domain, as one SQLite file.

Nodes are evidence, entities, facts and constraints (the corpus), actions, observations, verifiers and tasks; edges say `supports`,
`depends-on`, `produces`, `verifies` or `transition`. A node's id is the address of its content, so what is added twice is there
once. Steps `(state, action, observation, verdict)` form a tree below their task: a state's id is the address of the way to it, so
branches share what they have in common, and failed ones stay beside those that succeeded (`branches.py`).
Source: Agents-A1 report (arXiv 2606.30616), section on the knowledge-action infrastructure.

What it does: stores, checks, finds and follows. What it does not do: many writers at once; a file has one, and any number of
readers.
"""

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from ...specs.diagnostics import ExitCode, UserError
from ..files import full_disk_is_clear, sync_folder, unreadable
from .kinds import EdgeKind, NodeKind

LICENCES = "licences"  # noted: SPDX names of what was imported
APPLICATION = 0x504D4B47  # "PMKG", in the file's header
VERSION = 1
SQLITE_MAGIC = b"SQLite format 3\x00"
LONGEST_QUERY_WORDS = 64

_SCHEMA = f"""
CREATE TABLE nodes (place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX nodes_by_name ON nodes (kind, name);
CREATE TABLE edges (kind TEXT NOT NULL, source TEXT NOT NULL, target TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (source, kind, target, body)) WITHOUT ROWID;
CREATE INDEX edges_back ON edges (target, kind);
CREATE TABLE steps (id TEXT PRIMARY KEY, task TEXT NOT NULL, state TEXT NOT NULL, action TEXT NOT NULL, call INTEGER,
    observation TEXT, verdict REAL, readable INTEGER NOT NULL, evidence TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX steps_by_task ON steps (task);
CREATE TABLE attempts (number INTEGER PRIMARY KEY, task TEXT NOT NULL, last TEXT NOT NULL, accepted INTEGER NOT NULL,
    reason TEXT NOT NULL, record TEXT NOT NULL, digest TEXT NOT NULL UNIQUE);
CREATE TABLE proposals (number INTEGER PRIMARY KEY, outcome TEXT NOT NULL, attempts INTEGER NOT NULL, counts TEXT NOT NULL);
CREATE TABLE bands (band INTEGER NOT NULL, bucket BLOB NOT NULL, place INTEGER NOT NULL,
    PRIMARY KEY (band, bucket, place)) WITHOUT ROWID;
CREATE TABLE signatures (place INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, signature BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE texts USING fts5 (name, body, content=nodes, content_rowid=place);
CREATE VIEW links AS
    SELECT kind, source, target, body FROM edges
    UNION ALL SELECT 'transition', state, id, '{{}}' FROM steps
    UNION ALL SELECT 'produces', action, observation, '{{}}' FROM steps WHERE observation IS NOT NULL
    UNION ALL SELECT 'verifies', task, id, '{{}}' FROM steps WHERE verdict IS NOT NULL;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A node. `body` is a text, or JSON where its kind says so (actions, observations, tasks)."""

    id: str
    kind: NodeKind
    name: str
    body: str

    @classmethod
    def of(cls, kind: NodeKind, name: str, body: str = "") -> "Node":
        """A node by its content."""
        return cls(address(kind, name, body), kind, name, body)


@dataclass(frozen=True, slots=True)
class Edge:
    """A typed edge with what is known of it, such as the words of a hyperlink."""

    kind: str
    source: str
    target: str
    body: Mapping[str, Any]


def address(*parts: str) -> str:
    """Content address: 32 hexadecimal digits of sha256."""
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class GraphStore:
    """An open graph. Use it as a context manager; writes are one transaction until `commit`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool, keep: Any = None) -> None:
        self.path = path
        self._writable = writable
        self.sql = connection
        self._keep = keep  # the folder of a copy that goes when the store does

    @classmethod
    def create(cls, path: Path) -> "GraphStore":
        """A new file, or the one that is there to go on with.

        Raises:
            UserError: exit code 3; what is there is no graph of this version, or nothing can be written there.
        """
        if path.exists():
            return cls.open(str(path), writable=True)
        staging = path.with_name(f".staging-{path.name}")
        try:
            with full_disk_is_clear(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                staging.unlink(missing_ok=True)
                connection = sqlite3.connect(staging)
                connection.executescript(_SCHEMA)
                connection.close()
                staging.rename(path)
                sync_folder(path.parent)
        except (OSError, sqlite3.OperationalError) as error:
            raise UserError(
                f"no graph can be made at {path}: {getattr(error, 'strerror', None) or error}",
                exit_code=ExitCode.SPEC,
                fix="name a file in a folder that can be written to",
            ) from error
        return cls.open(str(path), writable=True)

    @classmethod
    def open(cls, url: str, *, writable: bool = False) -> "GraphStore":
        """The graph at a path or fsspec URL; a URL is copied here first, and read only.

        Raises:
            UserError: exit code 3; it is not there, truncated, of another version, or no graph at all. One message.
        """
        keep = None
        path = Path(url)
        if "://" in url:
            if writable:
                raise _unusable(url, "only a file on this machine can be written to")
            keep = tempfile.TemporaryDirectory(prefix="polymath-graph-")
            path = Path(keep.name, "graph.sqlite")
            try:
                with fsspec.open(url, "rb") as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
            except (OSError, ImportError, ValueError) as error:
                raise unreadable(url, error) from error
        _check_header(path, url)
        mode = "rw" if writable else "ro"
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, check_same_thread=False)
        try:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _unusable(url, "it is damaged")
            if writable:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.DatabaseError as error:
            connection.close()
            raise _unusable(url, f"it is damaged ({error})") from error
        return cls(path, connection, writable=writable, keep=keep)

    def __enter__(self) -> "GraphStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; what was not committed is gone."""
        if self._writable:  # leaves one file, which can be read from a read-only folder
            self.sql.rollback()
            self.sql.execute("PRAGMA journal_mode = DELETE")
        self.sql.close()
        if self._keep is not None:
            self._keep.cleanup()

    def keep(self, folder: Any) -> None:
        """Clean a temporary folder up when the store is closed."""
        self._keep = folder

    def commit(self) -> None:
        """Make what was written durable, all of it or none."""
        with full_disk_is_clear(self.path):
            self.sql.commit()

    def publish(self, url: str) -> None:
        """Copy the committed graph to a path or fsspec URL, as one file."""
        with tempfile.TemporaryDirectory(prefix="polymath-graph-") as folder:
            copy = Path(folder, "graph.sqlite")
            with contextlib.closing(sqlite3.connect(copy)) as target:
                self.sql.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
            with copy.open("rb") as source, fsspec.open(url, "wb") as stream:
                shutil.copyfileobj(source, stream)

    def add(self, kind: NodeKind, name: str, body: str = "") -> str:
        """Add a node, if it is not there yet; returns its id."""
        node = Node.of(kind, name, body)
        row = (node.id, kind, name, body)
        added = self.sql.execute("INSERT OR IGNORE INTO nodes (id, kind, name, body) VALUES (?, ?, ?, ?)", row)
        if added.rowcount and kind in ("evidence", "fact", "constraint"):
            self.sql.execute("INSERT INTO texts (rowid, name, body) VALUES (?, ?, ?)", (added.lastrowid, name, body))
        return node.id

    def link(self, kind: EdgeKind, source: str, target: str, **body: Any) -> None:
        """Add an edge, if it is not there yet."""
        row = (kind, source, target, json.dumps(body, ensure_ascii=False, sort_keys=True))
        self.sql.execute("INSERT OR IGNORE INTO edges VALUES (?, ?, ?, ?)", row)

    def node(self, identity: str) -> Node | None:
        """The node of an id."""
        row = self.sql.execute("SELECT id, kind, name, body FROM nodes WHERE id = ?", (identity,)).fetchone()
        return Node(*row) if row else None

    def nodes(self, kind: NodeKind | None = None, name: str | None = None) -> Iterator[Node]:
        """Nodes in the order they were added, of a kind or a name where one is given."""
        wanted = [(column, value) for column, value in (("kind", kind), ("name", name)) if value is not None]
        where = " AND ".join(f"{column} = ?" for column, _ in wanted) or "1"
        query = f"SELECT id, kind, name, body FROM nodes WHERE {where} ORDER BY place"
        for row in self.sql.execute(query, [value for _, value in wanted]):
            yield Node(*row)

    def find(self, words: str, limit: int = 10) -> list[Node]:
        """Evidence, facts and constraints that hold any of the words, the best first (BM25)."""
        found = "".join(one if one.isalnum() else " " for one in words).split()[:LONGEST_QUERY_WORDS]
        if not found:
            return []
        # Each word once, in quotes: nothing of it is FTS5's own syntax.
        expression = " OR ".join(f'"{word}"' for word in dict.fromkeys(found))
        query = (
            "SELECT nodes.id, kind, nodes.name, nodes.body FROM texts JOIN nodes ON nodes.place = texts.rowid "
            "WHERE texts MATCH ? ORDER BY bm25(texts, 4.0, 1.0), nodes.place LIMIT ?"
        )
        return [Node(*row) for row in self.sql.execute(query, (expression, limit))]

    def edges(self, identity: str, kind: EdgeKind | None = None, *, back: bool = False) -> list[Edge]:
        """Edges from a node or a step's state, or back to it; those of step records among them."""
        query = f"SELECT kind, source, target, body FROM links WHERE {'target' if back else 'source'} = ?"
        rows = self.sql.execute(query + (" AND kind = ?" if kind else ""), (identity, kind) if kind else (identity,))
        return [Edge(*row[:3], json.loads(row[3])) for row in rows]

    def reach(self, identity: str, kind: EdgeKind | None, depth: int, *, back: bool = False) -> dict[str, int]:
        """Ids that at most `depth` edges lead to, each with its distance."""
        found, frontier = {identity: 0}, [identity]
        for distance in range(1, depth + 1):
            onward = [edge.source if back else edge.target for one in frontier for edge in self.edges(one, kind, back=back)]
            frontier = [one for one in dict.fromkeys(onward) if one not in found]
            found |= dict.fromkeys(frontier, distance)
        return found

    def note(self, name: str, value: Any) -> None:
        """Keep a fact about the graph itself, such as where it came from."""
        self.sql.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value, sort_keys=True)))

    def noted(self, name: str) -> Any:
        """A fact about the graph itself; None where nobody noted it."""
        row = self.sql.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def summary(self) -> dict[str, Any]:
        """How many there are of everything."""

        def counts(query: str) -> dict[str, int]:
            return dict(self.sql.execute(query).fetchall())

        return {
            "nodes": counts("SELECT kind, count(*) FROM nodes GROUP BY kind"),
            "edges": counts("SELECT kind, count(*) FROM links GROUP BY kind"),
            "steps": self.sql.execute("SELECT count(*) FROM steps").fetchone()[0],
            "attempts": counts("SELECT CASE accepted WHEN 1 THEN 'accepted' ELSE 'refused' END, count(*) FROM attempts GROUP BY 1"),
            "reasons": counts("SELECT reason, count(*) FROM attempts WHERE NOT accepted GROUP BY reason"),
        }


def _check_header(path: Path, url: str) -> None:
    """Look at a file's first 100 bytes, before SQLite does: https://www.sqlite.org/fileformat.html."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header = stream.read(100)
    except OSError as error:
        raise unreadable(url, error) from error
    if len(header) < 100 or not header.startswith(SQLITE_MAGIC):
        raise _unusable(url, "it is no SQLite file")
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    page = 65_536 if page == 1 else page
    if header[24:28] == header[92:96] and size < page * pages:
        raise _unusable(url, f"it is truncated: {size} bytes of {page * pages}")
    if int.from_bytes(header[68:72], "big") != APPLICATION:
        raise _unusable(url, "it is a SQLite file of something else")
    if (version := int.from_bytes(header[60:64], "big")) != VERSION:
        raise _unusable(url, f"it is of version {version}; this Polymath reads {VERSION}")


def _unusable(url: str, why: str) -> UserError:
    return UserError(
        f"{url} cannot be used as a knowledge-action graph: {why}",
        exit_code=ExitCode.SPEC,
        fix="name another file, or make it anew: polymath graph-import",
    )
