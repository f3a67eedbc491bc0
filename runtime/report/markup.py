"""HTML and SVG elements whose text is always escaped: only what `tag` made passes through as it is."""

from collections.abc import Iterable
from html import escape

VOID = ("br", "meta")  # elements that have no end


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = Markup | str | int | float | None | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """One element. `class_` and `for_` lose their underscore, other underscores become hyphens; None leaves an attribute out."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{pairs}>" if name in VOID else f"<{name}{pairs}>{join(children)}</{name}>")


def join(children: Child) -> Markup:
    """Children one after the other, text escaped."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, (str, int, float)):
        return Markup(escape(_text(children)))
    return Markup("".join(join(child) for child in children))


def _text(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
