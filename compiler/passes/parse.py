"""parse: the file becomes a `Spec`, with the place of everything in it."""

from dataclasses import replace

from ...specs.load import read_spec
from ..compilation import Compilation


def parse(compilation: Compilation) -> Compilation:
    """Read the file and collect every mistake of form."""
    reading = read_spec(compilation.path, compilation.overrides, compilation.written)
    return replace(
        compilation,
        spec=reading.spec,
        spans=reading.spans,
        root=reading.root,
        texts=reading.texts,
        mistaken=reading.mistaken,
        diagnostics=reading.diagnostics,
    )
