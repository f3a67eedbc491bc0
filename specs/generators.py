"""The settings of the worlds that write their own tasks: the generators of the Agents-A1 report (arXiv 2606.30616), data section.

Demonstrations of these worlds come from self-play: a task and its episode are kept only where all five checks hold.
"""

from dataclasses import dataclass

from .fields import spec_field


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchWalksSettings:
    """Questions along hyperlinks of an invented encyclopedia, or of a graph of the user's."""

    graph: str | None = spec_field(
        "Knowledge-action graph of hyperlinked pages, made by `graph-import`; left out, an invented encyclopedia.",
        default=None,
        location=True,
    )
    pages: int = spec_field("Articles of the invented encyclopedia.", default=400, minimum=50, maximum=100_000)
    page_words: int = spec_field("Words of an article, about.", default=120, minimum=20, maximum=20_000, unit="words")
    corpus_seed: int = spec_field("Seed of the encyclopedia.", default=0, minimum=0)
    hops: int = spec_field("Fewest links between the first page and the answer.", default=2, minimum=2, maximum=64)
    most_hops: int = spec_field("Most links, where `mean_tokens` asks for long episodes.", default=96, minimum=2, maximum=256)
    mean_tokens: int | None = spec_field(
        "Mean length of an oracle's episode; left out, walks have `hops` links. The 35B recipe's is 45,000.",
        default=None,
        minimum=200,
        maximum=131_072,
        unit="tokens",
    )
    fewest_links: int = spec_field("Links that a page on the way must have.", default=2, minimum=1)
    part_characters: int = spec_field("Characters of a page that one call shows.", default=6000, minimum=200)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineeringTreeSettings:
    """Programs that predict a column of a table, as a tree of executable nodes."""

    columns: int = spec_field("Columns beside the one to predict.", default=3, minimum=2, maximum=8)
    bound: float = spec_field("R2 on the private rows that an answer must reach.", default=0.9, minimum=0.1, maximum=0.999)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSubgraphsSettings:
    """Requests to services whose tools depend on one another, by a simulated user."""

    documents: str | None = spec_field(
        "Folder of BFCL's function documents (`func_doc`): its eight services serve. Left out, four invented ones do.",
        default=None,
        location=True,
    )
    people: int = spec_field("People of each of the four invented services.", default=100, minimum=4, maximum=400)
    service_seed: int = spec_field("Seed of what the invented services know.", default=0, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScientificChainsSettings:
    """Quantities of chemistry, through chains of tools that hold the constants."""

    fewest_calls: int = spec_field("Fewest calls of a chain.", default=3, minimum=2, maximum=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScienceRewritesSettings:
    """Physics problems, with four tools or none."""

    tools: bool = spec_field(
        "Whether properties have to be looked up and computed by program; else the question holds them.", default=True
    )
    materials: int = spec_field("Samples that the library knows.", default=60, minimum=2, maximum=10_000)
    corpus_seed: int = spec_field("Seed of the library.", default=0, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstraintsSettings:
    """Texts under several constraints."""

    fewest: int = spec_field("Fewest constraints beside the topic.", default=2, minimum=1, maximum=8)
    most: int = spec_field("Most constraints beside the topic.", default=5, minimum=1, maximum=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class LongContextSettings:
    """Multiple choice over many documents, one of which holds the rule that decides."""

    documents: int = spec_field(
        "Places whose entries stand in the context, two documents each.", default=12, minimum=3, maximum=2000
    )
    document_words: int = spec_field(
        "Words around an entry, about half before it.", default=40, minimum=7, maximum=4000, unit="words"
    )
    places: int = spec_field("Places that the ledgers know.", default=400, minimum=4, maximum=100_000)
    corpus_seed: int = spec_field("Seed of the ledgers.", default=0, minimum=0)


USER_WORLDS = ("tool_subgraphs",)  # whose user an endpoint may speak for

GENERATOR_WORLDS: dict[str, type] = {
    "search_walks": SearchWalksSettings,
    "engineering_tree": EngineeringTreeSettings,
    "science_rewrites": ScienceRewritesSettings,
    "constraints": ConstraintsSettings,
    "long_context": LongContextSettings,
    "tool_subgraphs": ToolSubgraphsSettings,
    "scientific_chains": ScientificChainsSettings,
}
