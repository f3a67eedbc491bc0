"""Corpora into a graph: a folder of documents, hyperlinked pages of a wiki, tool documents, and trajectories.

What it does: reads text that nobody vouches for, with bounds, and keeps it as data. What it does not do: run, fetch or render
anything; a page is a text, whatever it says.
"""

import bz2
import gzip
import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any
from xml.etree import ElementTree

from ...specs.diagnostics import ExitCode, UserError
from ...specs.load import load_spec
from ...specs.locations import is_url
from ...specs.worlds import BUILTIN_WORLDS
from ..data.trajectories import RowError, bad_row, json_lines, read_json
from ..files import unreadable
from ..worlds.graph import KnowledgeActionGraph
from .branches import add_attempt
from .conversions import read_any
from .graph import LICENCES, GraphStore
from .kinds import ImportKind

DOCUMENT_SUFFIXES = (".md", ".markdown", ".txt", ".rst")
MOST_DOCUMENT_BYTES = 4 * 1024 * 1024
TAIL_SECTIONS = ("references", "external links", "see also", "further reading", "notes", "bibliography", "sources", "citations")
NO_PAGE = ("category:", "file:", "image:", "template:", "wikipedia:", "help:", "portal:", "special:", "draft:", "mediawiki:")
LIST_LINE = re.compile(r"^\s*(?:[*#:;-]|\d+[.)])\s")
_WIKI_LINK = re.compile(r"\[\[([^\[\]|#\n]{0,200})(?:#[^\[\]|\n]*)?(?:\|([^\[\]\n]{0,200}))?\]\]")
_MARKDOWN_LINK = re.compile(r"\[([^\[\]\n]{1,200})\]\(([^()\s]{1,300})\)")
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1\s*$", re.MULTILINE)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_NO_TEXT = "ref|references|math|gallery|timeline|syntaxhighlight|source|pre|score|hiero|imagemap"
_TAG = re.compile(
    rf"<!--.*?-->|<(?:{_NO_TEXT})(?:\s[^>]*)?/>|<({_NO_TEXT})(?:\s[^>]*)?(?<!/)>.*?</\1\s*>|<[a-zA-Z/][^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_NOWIKI = re.compile(r"<nowiki>(.*?)</nowiki\s*>|<nowiki\s*/>", re.DOTALL | re.IGNORECASE)
_MARKS, _PRIVATE = "[]{}|='<>&#*_", 0xE000  # characters that mean something in markup, and where they are kept as texts
_SHOWN_TEMPLATE = re.compile(
    r"\{\{\s*(lang|transl|nowrap|nobold|small|abbr|convert|circa)\s*((?:\|[^{}|]*)*)\}\}|\{\{formatnum:([^{}|]*)\}\}", re.IGNORECASE
)
_OUTSIDE = re.compile(r"\[(?:https?|ftp)://[^\s\]]*\s*([^\]\n]*)\]")
_MAGIC = re.compile(r"__[A-Z]+__")
_DISAMBIGUATION = re.compile(
    r"__DISAMBIG__|\{\{\s*(?:[\w ]*disambig(?:uation)?|dab|hndis|geodis|surname|given name)\s*[|}]", re.IGNORECASE
)
_INTERWIKI = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*:(?=\S)")
DEEPEST_REDIRECT = 4
TAKEN_FIELDS, GIVEN_FIELDS = ("parameters", "inputSchema", "input_schema"), ("response", "outputSchema")  # of a function schema
ENDS_EARLY = (3, 5)  # expat's codes: no element found, unclosed token
TAKES: Mapping[ImportKind, str] = {
    "documents": f"a folder of {', '.join(DOCUMENT_SUFFIXES)} files, each of at most {MOST_DOCUMENT_BYTES >> 20} MiB",
    "wiki": "a MediaWiki export in UTF-8 (.xml, .xml.bz2, .xml.gz), or JSON Lines of `title` and `text` (.jsonl)",
    "tools": "JSON or JSON Lines of function schemas (OpenAI's, MCP's or bare), or a folder of such files",
    "trajectories": "JSON Lines of records, chat rows or ShareGPT rows",
    "worlds": "a spec with a domain whose world has a graph of its own, such as `search`",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page as plain text, with its links in the order they stand there."""

    title: str
    text: str
    links: list["Link"] = field(default_factory=list)
    redirect: str | None = None  # to another title; such a page has no text of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A hyperlink: where it leads, the words it is set on, and where they stand in the text."""

    target: str
    anchor: str
    start: int


def import_into(store: GraphStore, kind: ImportKind, source: str, licence: str | None = None) -> int:
    """Add a source to a graph and commit; returns how many documents, pages, tools, trajectories or worlds it held.

    Args:
        licence: SPDX name; every episode that is played over the graph states the licences of all that it was made of.

    Raises:
        UserError: exit code 3; the source is missing, empty, damaged or of another kind, or holds nothing that can be read.
    """
    if kind != "trajectories":
        _check_source(kind, source)
    try:
        readers = {"documents": _documents, "wiki": _wiki, "tools": _tools, "trajectories": _trajectories, "worlds": _worlds}
        count = readers[kind](store, source)
    except OSError as error:
        raise unreadable(str(error.filename or source), error) from error
    if not count:
        raise _wrong(kind, f"{source} holds no {'pages' if kind == 'wiki' else kind} that can be read")
    if licence is not None:
        store.note(LICENCES, sorted({licence, *(store.noted(LICENCES) or ())}))
    store.commit()
    return count


def _check_source(kind: ImportKind, source: str) -> None:
    path = Path(source)
    if is_url(source):
        raise _wrong(kind, f"{source} is a URL, and only trajectories are read from one; copy it here first")
    if not path.exists():
        raise unreadable(source, FileNotFoundError(), "folder" if kind == "documents" else "file")
    if kind == "documents" and not path.is_dir():
        raise _wrong(kind, f"{source} is a file")
    if kind == "wiki" and path.is_dir():
        raise _wrong(kind, f"{source} is a folder")
    if path.is_file() and not path.stat().st_size:
        raise _wrong(kind, f"{source} is empty")


def _wrong(kind: ImportKind, what: str) -> UserError:
    return UserError(what, exit_code=ExitCode.SPEC, fix=f"`{kind}` takes {TAKES[kind]}")


def add_pages(store: GraphStore, pages: Iterable[Page], origin: str) -> int:
    """Add hyperlinked pages; a link to a page that is not among them is left out. Returns the number of pages.

    A redirect becomes an entity of its title with a transition to its page, and links to it lead to that page. Titles and links
    wait in temporary tables until all pages are there, so that memory does not grow with their number.
    """
    sql = store.sql
    for table in ("titles", "waiting"):
        sql.execute(f"DROP TABLE IF EXISTS temp.{table}")  # of an import that failed
    sql.execute("CREATE TEMP TABLE titles (title TEXT PRIMARY KEY, page TEXT, redirect TEXT) WITHOUT ROWID")
    sql.execute("CREATE TEMP TABLE waiting (source TEXT, target TEXT, anchor TEXT, start INTEGER)")
    for page in pages:
        if page.redirect is not None:
            query = "INSERT INTO titles VALUES (?, NULL, ?) ON CONFLICT DO UPDATE SET redirect = excluded.redirect"
            sql.execute(query, (page.title, page.redirect))
            continue
        identity = store.add("evidence", page.title, page.text)
        query = "INSERT INTO titles VALUES (?, ?, NULL) ON CONFLICT DO UPDATE SET page = coalesce(page, excluded.page)"
        sql.execute(query, (page.title, identity))
        rows = [(identity, link.target, link.anchor, link.start) for link in page.links]
        sql.executemany("INSERT INTO waiting VALUES (?, ?, ?, ?)", rows)

    def page_of(title: str) -> str | None:
        query = "SELECT page, redirect FROM titles WHERE title IN (?, ?) ORDER BY title = ? DESC LIMIT 1"
        for _ in range(DEEPEST_REDIRECT + 1):
            found = sql.execute(query, (title, first_upper(title), title)).fetchone()
            if found is None or found[0] is not None:
                return found and found[0]
            title = found[1]
        return None

    for title, redirect in sql.execute("SELECT title, redirect FROM titles WHERE page IS NULL"):
        if (target := page_of(redirect)) is not None:
            store.link("transition", store.add("entity", title), target, redirect=True)
    for source, title, anchor, start in sql.execute("SELECT source, target, anchor, start FROM waiting ORDER BY rowid"):
        target = page_of(title)
        if target is not None and target != source:
            store.link("transition", source, target, anchor=anchor, start=start)
    count: int = sql.execute("SELECT count(*) FROM titles WHERE page IS NOT NULL").fetchone()[0]
    store.note(f"imported:{origin}", count)
    for table in ("titles", "waiting"):
        sql.execute(f"DROP TABLE temp.{table}")
    return count


def first_upper(title: str) -> str:
    """A title as a wiki spells it whose titles begin with a capital."""
    return title[:1].upper() + title[1:]


def _documents(store: GraphStore, source: str) -> int:
    root = Path(source)
    paths = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in DOCUMENT_SUFFIXES and path.is_file()]
    return add_pages(store, (_document(root, path) for path in paths if path.stat().st_size <= MOST_DOCUMENT_BYTES), source)


def _document(root: Path, path: Path) -> Page:
    """A document; its title is its path, and links between documents become links between pages."""
    here = PurePosixPath(path.relative_to(root).as_posix())
    found: list[Link] = []
    text = _replace_links(
        path.read_text(encoding="utf-8", errors="replace"),
        _MARKDOWN_LINK,
        lambda match: (match[1], None if "://" in match[2] else _normal(here.parent / match[2].split("#")[0])),
        found,
    )
    return Page(title=str(here), text=text, links=found)


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part not in (".", ".."):
            parts.append(part)
    return "/".join(parts)


def _wiki(store: GraphStore, source: str) -> int:
    """Pages of a MediaWiki export (`.xml`, also `.bz2` or `.gz`), or of JSON Lines with `title` and `text` in wiki markup."""
    pages = _jsonl_pages(source) if Path(source).suffix == ".jsonl" else _dump_pages(source)
    return add_pages(store, pages, source)


def _jsonl_pages(source: str) -> Iterator[Page]:
    for row, line in json_lines(source):
        try:
            data = read_json(line, row)
        except RowError as error:
            raise bad_row(source, row, str(error)) from None
        if not isinstance(data.get("title"), str) or not isinstance(data.get("text"), str):
            raise bad_row(source, row, "a page has the texts `title` and `text`")
        yield wiki_page(data["title"], data["text"])


def _dump_pages(source: str) -> Iterator[Page]:
    """Articles and redirects of the main namespace, without disambiguation pages."""
    namespaces = set(NO_PAGE)
    try:
        with _unpacked(Path(source)) as stream:
            root, page = None, {}
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                root = element if root is None else root
                name = element.tag.rpartition("}")[2]
                if event == "start":
                    continue
                if name == "namespace" and element.text:
                    namespaces.add(f"{element.text.lower()}:")
                elif name in ("title", "ns", "text"):  # of several revisions, the last
                    page[name] = element.text or ""
                elif name == "redirect":
                    page[name] = element.get("title", "")
                elif name == "page":
                    yield from _article(page, tuple(namespaces))
                    page = {}
                    root.clear()  # else the empty pages of a dump stay
    except (OSError, EOFError, zlib.error, ElementTree.ParseError) as error:
        said = f"{source} cannot be read as a MediaWiki export: {error}"
        if isinstance(error, EOFError) or getattr(error, "code", None) in ENDS_EARLY:
            fix = "it ends too early; copy it again, and compare its checksum with that of where it comes from"
            raise UserError(said, exit_code=ExitCode.SPEC, fix=fix) from error
        raise _wrong("wiki", said) from error


def _article(page: Mapping[str, str], namespaces: tuple[str, ...]) -> Iterator[Page]:
    title, text = page.get("title", ""), page.get("text", "")
    if not title or page.get("ns", "0") != "0" or title.lower().startswith(namespaces):
        return
    written = re.match(r"\s*#\w+:?\s*\[\[([^\]|#\n]+)", text)  # `#REDIRECT` has a name in every language
    if target := page.get("redirect") or (written[1].strip().replace("_", " ") if written else ""):
        yield Page(title=title, text="", redirect=target.partition("#")[0])
    elif not _DISAMBIGUATION.search(text) and not title.endswith("(disambiguation)"):
        yield wiki_page(title, text, namespaces)


def _unpacked(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked by how they begin, whatever it is called."""
    with path.open("rb") as stream:
        begins = stream.read(3)
    opened = bz2.open if begins == b"BZh" else gzip.open if begins[:2] == b"\x1f\x8b" else open
    return opened(path, "rb")


def wiki_page(title: str, markup: str, namespaces: tuple[str, ...] = NO_PAGE) -> Page:
    """A page of wiki markup as plain text; anchors in lists are no links.

    Tail sections, templates, tables, references, formulas, pictures and links to other wikis are left out.

    Args:
        namespaces: beginnings of titles that are no articles, in lower case with their colon.
    """
    for heading in _HEADING.finditer(markup):
        if len(heading[1]) == 2 and heading[2].lower() in TAIL_SECTIONS:
            markup = markup[: heading.start()]
            break
    markup = _SHOWN_TEMPLATE.sub(_shown_text, _TAG.sub("", _NOWIKI.sub(_literal, markup)))
    for pattern in (_TEMPLATE, _TABLE):
        markup = _all_gone(pattern, markup)
    markup = html.unescape(_MAGIC.sub("", _OUTSIDE.sub(r"\1", _without_pictures(markup, namespaces))))
    markup = _HEADING.sub(r"\2", markup.replace("'''", "").replace("''", ""))
    found: list[Link] = []
    markup = re.sub(r"(?<=\S) {2,}", " ", markup)  # where something was left out
    text = _replace_links(markup.strip(), _WIKI_LINK, lambda match: _wiki_target(match, namespaces), found)
    text = text.translate({_PRIVATE + ord(one): one for one in _MARKS})
    return Page(title=title, text=text, links=[link for link in found if not LIST_LINE.match(_line_of(text, link.start))])


def _literal(match: re.Match[str]) -> str:
    """What stands between `nowiki` marks, in characters of private use, so that it stays a text whatever it looks like."""
    return "".join(chr(_PRIVATE + ord(one)) if one in _MARKS else one for one in match[1] or "")


def _shown_text(match: re.Match[str]) -> str:
    """The text of a template that shows one of its arguments; nothing where it has none."""
    if match[3] is not None:
        return match[3]
    name, values = match[1].lower(), [one.strip() for one in match[2].split("|")[1:]]
    values = [one for one in values if not re.match(r"[\w -]+=", one)]
    if name == "convert":
        return " ".join(values[:2])
    if name == "circa":
        return f"c. {values[0]}" if values else ""
    return values[-1 if name in ("lang", "transl") else 0] if values else ""


def _all_gone(pattern: re.Pattern[str], markup: str) -> str:
    """The markup without what a pattern matches, which may nest."""
    for _ in range(8):
        bare = pattern.sub("", markup)
        if bare == markup:
            break
        markup = bare
    return markup


def _without_pictures(markup: str, namespaces: tuple[str, ...]) -> str:
    """The markup without links to files and categories; a picture's caption may hold links of its own."""
    parts: list[str] = []
    end = depth = start = 0
    for mark in re.finditer(r"\[\[|\]\]", markup):
        if mark[0] == "[[":
            if depth or markup[mark.end() : mark.end() + 40].lstrip().lower().startswith(namespaces):
                start = start if depth else mark.start()
                depth += 1
        elif depth:
            depth -= 1
            if not depth:
                parts.append(markup[end:start])
                end = mark.end()
    return "".join([*parts, markup[end:]])


def _wiki_target(match: re.Match[str], namespaces: tuple[str, ...]) -> tuple[str, str | None]:
    target = match[1].strip().replace("_", " ")
    if _INTERWIKI.match(target):
        return "", None
    shown = (match[2] or "").strip() or target.removeprefix(":")
    return shown, None if not target or target.startswith(":") or target.lower().startswith(namespaces) else target


def _line_of(text: str, place: int) -> str:
    return text[text.rfind("\n", 0, place) + 1 : place + 1]


def _replace_links(markup: str, pattern: re.Pattern[str], read: Any, found: list[Link]) -> str:
    """The text with every link replaced by its words; what the links are goes to `found`."""
    parts: list[str] = []
    length = end = 0
    for match in pattern.finditer(markup):
        shown, target = read(match)
        parts += [markup[end : match.start()], shown]
        length += match.start() - end
        if target is not None:
            found.append(Link(target=target, anchor=shown, start=length))
        length += len(shown)
        end = match.end()
    return "".join([*parts, markup[end:]])


def _tools(store: GraphStore, source: str) -> int:
    """Tool documents: a file or folder of JSON or JSON Lines of function schemas (OpenAI's, MCP's, or bare)."""
    root = Path(source)
    paths = sorted(path for path in root.rglob("*.json*") if path.is_file()) if root.is_dir() else [root]
    count = 0
    for path in paths:
        for tool in _tool_documents(path):
            add_tool(store, tool)
            count += 1
    return count


def add_tool(store: GraphStore, tool: Mapping[str, Any]) -> str:
    """Add a tool: it depends on the fields that it takes and produces those that it returns. Returns the id of its node."""
    function = tool.get("function", tool)
    action = store.add("action", str(function["name"]), json.dumps(tool, ensure_ascii=False))
    takes = next((found for name in TAKEN_FIELDS if (found := function.get(name))), {})
    gives = next((found for name in GIVEN_FIELDS if (found := function.get(name))), {})
    for name in takes.get("properties") or {}:
        store.link("depends-on", action, store.add("entity", name), required=name in (takes.get("required") or []))
    for name in gives.get("properties") or {}:
        store.link("produces", action, store.add("entity", name))
    return action


def _worlds(store: GraphStore, source: str) -> int:
    """The graphs of a spec's domains, of those whose world draws from one; returns how many."""
    from ..worlds.base import GraphWorld
    from ..worlds.registry import make_world

    count = 0
    for domain in load_spec(source).spec.domains.values():
        if domain.world in BUILTIN_WORLDS and isinstance(world := make_world(domain.world, domain.settings), GraphWorld):
            _add_world(store, world.graph)
            count += 1
    return count


def _add_world(store: GraphStore, graph: KnowledgeActionGraph) -> None:
    """Facts support what they lead to, and verifiers verify actions."""
    for fact in graph.all_facts():
        evidence = store.add("fact", f"{fact.subject} {fact.relation}", fact.value)
        store.link("supports", evidence, store.add("entity", fact.value))
        store.link("transition", store.add("entity", fact.subject), store.add("entity", fact.value), anchor=fact.relation)
    actions = {action.name: add_tool(store, action.schema()) for action in graph.actions}
    for name, checks in graph.verifiers.items():
        verifier = store.add("verifier", name, checks)
        if name in actions:
            store.link("verifies", verifier, actions[name])


def _tool_documents(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise _wrong("tools", f"{path} is not UTF-8 (byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise _wrong("tools", f"{path} cannot be read as tool documents: {error}") from error
    found = found.get("tools", [found]) if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise _wrong("tools", f"{path} is neither an object nor a list")
    for number, tool in enumerate(found, start=1):
        if problem := _problem_of(tool):
            raise _wrong("tools", f"{path}, tool {number}: {problem}")
        yield tool


def _problem_of(tool: Any) -> str | None:
    """What keeps a document from being a function schema; None where nothing does."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return "it has no `name`"
    for field_name in (*TAKEN_FIELDS, *GIVEN_FIELDS):
        schema = function.get(field_name) or {}
        if not isinstance(schema, dict) or not isinstance(schema.get("properties") or {}, dict):
            return f"`{field_name}` is no JSON schema of an object"
        if not isinstance(schema.get("required") or [], list):
            return f"`{field_name}.required` is no list"
    return None


def _trajectories(store: GraphStore, source: str) -> int:
    """Trajectories in our schema, OpenAI's chat form or ShareGPT's; those with a reward below 1 are kept as failed branches."""
    count = 0
    for record in read_any(source):
        succeeded = record.reward is None or record.reward >= 1.0
        count += add_attempt(store, record, accepted=succeeded, reason="" if succeeded else "reward")
    return count
