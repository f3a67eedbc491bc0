"""How many tokens the rows of a file have, for the lock: rendered as for training, so that limits can be held against them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...specs.locations import absolute_url, local_path
from ...specs.model import Model, TrajectorySource
from .renderer import Renderer
from .tokenizers import ChatTokenizer, load_tokenizer
from .trajectories import SourceReport, bad_row, read_source


def load_spec_tokenizer(model: Model, root: Path) -> ChatTokenizer | None:
    """The tokenizer of a spec; None where it does not lie on this machine."""
    folder = model.checkpoint if model.tokenizer == "from-checkpoint" else model.tokenizer
    path = None if folder.startswith("builtin:") else local_path(folder, root)
    if path is not None and not path.is_dir():
        return None
    return load_tokenizer(model, path, path)


def count_tokens(
    tokenizer: ChatTokenizer, source: TrajectorySource, root: Path, tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, list[int]]:
    """`tokens` of every row, and the `response_tokens` of its longest turn.

    Args:
        tools: of the domain's world, for rows that name none.

    Raises:
        UserError: exit code 3; a row cannot be read, or not be written with this tokenizer.
    """
    assert source.path is not None
    url = absolute_url(source.path, root)
    renderers: dict[str, Renderer] = {}
    found: dict[str, list[int]] = {"tokens": [], "response_tokens": []}
    for conversation in read_source(url, source, SourceReport(url=url)):
        its_tools = tools if conversation.tools is None else conversation.tools
        key = json.dumps(list(its_tools), allow_nan=False)
        try:
            if key not in renderers:
                renderers[key] = Renderer(tokenizer, its_tools)
            rendered = renderers[key].render(conversation.messages)
        except (ValueError, RecursionError) as error:
            raise bad_row(source.path, conversation.row, str(error)) from error
        found["tokens"].append(len(rendered.ids))
        found["response_tokens"].append(_longest_run(rendered.written))
    return found


def _longest_run(written: Sequence[bool]) -> int:
    longest = run = 0
    for one in written:
        run = run + 1 if one else 0
        longest = max(longest, run)
    return longest
