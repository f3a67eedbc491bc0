"""`polymath explain`: a code with an example that fails, or a field with all that is declared of it.

`python -m polymath.compiler.explain docs/errors/` writes the page of every code.
"""

import difflib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from ..specs.build import is_required, suggest, to_json
from ..specs.codes import CODES
from ..specs.diagnostics import ExitCode, SpecInvalid, UserError, render
from ..specs.fields import FieldInfo, Identity
from ..specs.reference import describe_default, describe_limits, describe_type
from ..specs.tree import ANY_NAME, Node, all_nodes, blocks_of, find_nodes, identity_of
from .driver import check_spec, lock_spec
from .examples import EXAMPLES, Example
from .sweep import compile_sweep

MEANING = {
    Identity.NUMERICS: "numerics: the weights; the job and all after it run again",
    Identity.PLACEMENT: "placement: where and how fast; finished jobs are kept",
    Identity.LABEL: "label: names only",
}
WIDEST = 150  # columns of an example


def explain(topic: str) -> str:
    """The text on a code or a field.

    Raises:
        UserError: there is no such code or field.
    """
    code = topic.upper()
    if re.fullmatch(r"E\d+", code):
        if code in CODES:
            return code_page(code)
        raise UserError(f"no mistake has the code {code}", exit_code=ExitCode.USAGE, fix=_guess(code, list(CODES)))
    nodes = find_nodes(topic)
    if nodes:
        return field_page(topic, nodes)
    paths = sorted({node.path for node in all_nodes()})
    last = topic.rpartition(".")[2]
    same = [path for path in paths if path.rpartition(".")[2] == last]
    fix = f"`{last}` exists at {', '.join(f'`{path}`' for path in same[:4])}" if same else _guess(topic, paths)
    raise UserError(f"the language has no `{topic}`", exit_code=ExitCode.USAGE, fix=fix)


def field_page(topic: str, nodes: list[Node]) -> str:
    """All that is declared of a field; blocks list theirs."""
    return "\n\n".join("\n".join(_field_lines(topic, node)) for node in nodes) + "\n"


def _field_lines(topic: str, node: Node) -> Iterator[str]:
    info: FieldInfo = node.info
    yield f"{topic}   ({node.owner.__name__}.{node.steps[-1]})"
    yield f"  {info.doc}"
    yield f"  type      {describe_type(node.kind)}"
    if info.unit:
        yield f"  unit      {info.unit}"
    yield f"  default   {'none: it is required' if is_required(node.field) else describe_default(node.field) or 'not set'}"
    if limits := describe_limits(info):
        yield f"  range     {limits}" + (f": {info.limit_reason}" if info.limit_reason else "")
    if info.pattern:
        yield f"  pattern   {info.pattern}"
    if info.reference:
        yield f"  names     one of the spec's {info.reference}"
    yield f"  changes   {MEANING[identity_of(node.path)]}"
    yield f"  example   {json.dumps(_example(node), ensure_ascii=False)}"
    for block in blocks_of(node.kind) or _items_of(node.kind):
        yield f"  fields of {block.__name__}: {' '.join((block.__doc__ or '').split())}"
        inner = [one for one in all_nodes() if one.owner is block]
        width = max(len(one.steps[-1]) for one in inner)
        shown: set[str] = set()
        for one in inner:
            if one.steps[-1] not in shown:
                shown.add(one.steps[-1])
                yield f"    {one.steps[-1]:<{width}}  {one.info.doc}"


def _items_of(kind: Any) -> list[type[Any]]:
    """The blocks in the lists and mappings of a type."""
    return [block for inner in getattr(kind, "__args__", ()) for block in (blocks_of(inner) or _items_of(inner))]


def _example(node: Node) -> Any:
    """What the template holds there, or the declaration's own example, or the default."""
    if node.info.examples:
        return node.info.examples[0]
    here: Any = to_json(check_spec(_template_path()).spec)
    for step in node.steps:
        if isinstance(here, dict):
            block = cast(dict[str, Any], here)
            here = next(iter(block.values()), None) if step == ANY_NAME else block.get(step)
        elif isinstance(here, list):
            items = cast(list[Any], here)
            here = items[0] if items else None
    return here


def code_page(code: str) -> str:
    """The page of a code: what it means, an example with its real output, and how to mend it."""
    entry = CODES[code]
    parts = [f"# {code}: {entry.title}", entry.doc]
    example = EXAMPLES.get(code)
    if example is not None:
        parts += ["## Example", *_run_example(code, example), "## How to fix it", example.fix]
    return "\n\n".join(parts) + "\n"


def _run_example(code: str, example: Example) -> Iterator[str]:
    before = _template_path().read_text(encoding="utf-8")
    after = before
    for old, new in example.changes:
        assert old in after, f"{code}: the template no longer holds {old!r}"
        after = after.replace(old, new, 1)
    if example.changes:
        yield "`my.yaml` is what `polymath init` writes, with this change:"
        yield f"```diff\n{_changed_lines(before, after)}\n```"
    for name, text in example.files.items():
        yield f"`{name}` is empty." if not text else f"`{name}`:\n\n```\n{text.rstrip()}\n```"
    overrides = "".join(f" --set {one}" for one in example.overrides)
    called = "sweep.yaml" if example.verb == "sweep" else "my.yaml"
    yield f"```\n$ polymath {example.verb} {called}{overrides}\n{_output(code, example, after)}\n```"


def _output(code: str, example: Example, text: str) -> str:
    """What is said of the code, the file being called `my.yaml`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for file, content in example.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(content, encoding="utf-8")
        (folder / "my.yaml").write_text(text, encoding="utf-8")
        try:
            if example.verb == "lock":
                lock_spec(folder / "my.yaml", example.overrides)
            if example.verb == "sweep":
                compile_sweep(folder / "sweep.yaml")
            check_spec(folder / "my.yaml", example.overrides)
        except SpecInvalid as error:
            mine = [render(one, error.sources.get(one.span.file)) for one in error.diagnostics if one.code == code]
            assert mine, f"{code}: its example fails otherwise: {error.message}"
            said = mine[0].replace(f"{folder}/", "")
            return "\n".join(_cut(line) for line in said.splitlines())
    raise AssertionError(f"{code}: its example is right")


def _changed_lines(before: str, after: str) -> str:
    lines = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:1] in "+-"]
    visible = ("".join(char if char.isprintable() else f"<U+{ord(char):04X}>" for char in line) for line in lines)
    return "\n".join(_cut(f"{line[0]}{line[2:]}") for line in visible)


def _cut(line: str) -> str:
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 3].rstrip()}..."


def _template_path() -> Path:
    return Path(str(files("polymath.specs").joinpath("init.yaml")))


def _guess(word: str, known: list[str]) -> str:
    guess = suggest(word, known)
    return f"did you mean `{guess}`?" if guess else "docs/errors.md lists the codes and docs/language.md the fields"


def write_pages(folder: Path) -> None:
    """Write the page of every code, and remove no other."""
    folder.mkdir(parents=True, exist_ok=True)
    for code in CODES:
        (folder / f"{code}.md").write_text(code_page(code), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
