"""The generated pages are fresh."""

from pathlib import Path

import pytest
from polymath.specs.reference import errors_page, language_page

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(("name", "page"), [("language.md", language_page), ("errors.md", errors_page)])
def test_the_page_is_fresh(name: str, page) -> None:  # type: ignore[no-untyped-def]
    assert (DOCS / name).read_text(encoding="utf-8") == page(), "python -m polymath.specs.reference docs/"
