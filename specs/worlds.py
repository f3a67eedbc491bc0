"""The settings of the built-in worlds. Defaults are the tiny difficulty: learnable by a model of a few hundred thousand parameters.

At the defaults a message is a few words of `runtime/worlds/vocabulary.py`; larger settings leave that vocabulary and want a real
tokenizer. Every world needs enough distinct tasks for the spec's prompts; too few is an error that says how many there are.
"""

# ruff: noqa: RUF009  (spec_field returns a dataclass field, never a shared default)

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from .build import Path, Problem, build
from .fields import LOCATION_FORMAT, spec_field
from .generators import GENERATOR_WORLDS
from .installed import properties_of, settings_schema


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """Multi-hop questions over a small corpus of pages."""

    entities: int = spec_field("People in the corpus; each has a page.", default=64, minimum=4)
    relations: int = spec_field("Kinds of relation that link people.", default=10, minimum=2, maximum=16)
    hops: int = spec_field("Relations that a question chains.", default=2, minimum=1, maximum=8)
    results: int = spec_field("Pages that one search lists.", default=1, minimum=1, maximum=50)
    page_facts: int = spec_field("Sentences of a page that `open` shows after its title.", default=0, minimum=0)
    corpus_seed: int = spec_field("Seed of the facts.", default=0, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineeringSettings:
    """Writing a small program that passes its tests."""

    language: Literal["steps", "python"] = spec_field(
        "`steps` is a total language of one-word steps, interpreted here; `python` programs run in the sandbox.", default="steps"
    )
    operations: int = spec_field("Steps that programs are built from.", default=4, minimum=2, maximum=8)
    modulus: int = spec_field("Values are whole numbers below this.", default=20, minimum=5)
    length: int = spec_field("Steps of the program that is asked for.", default=2, minimum=2, maximum=12)
    names: int = spec_field("Names that programs can have.", default=24, minimum=1)
    examples: int = spec_field(
        "Examples that a task shows; the first shows every value on the way where `trace` is true.", default=1, minimum=1
    )
    hidden_tests: int = spec_field("Further tests that the program must pass.", default=0, minimum=0)
    trace: bool = spec_field("Whether the first example shows the value after every step.", default=True)
    seconds: float = spec_field("Time a Python program may take.", unit="seconds", default=5.0, exclusive_minimum=0)
    memory_mib: int = spec_field("Memory a Python program may take.", unit="MiB", default=256, minimum=32)
    allow_unsandboxed: bool = spec_field(
        "Consent to run a model's Python programs without isolation where the sandbox does not work.", default=False
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScienceSettings:
    """Physical quantities with units."""

    formulas: int = spec_field("Formulas that a question chains.", default=1, minimum=1, maximum=4)
    largest: int = spec_field("Largest number in a question or on the way to its answer.", default=99, minimum=9)
    modulus: int = spec_field("`calculate` gives whole numbers modulo this; 0 for plain decimals.", default=100, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionsSettings:
    """Checkable constraints on an answer."""

    words: int = spec_field("Words that answers are made of.", default=16, minimum=6)
    fewest: int = spec_field("Shortest answer that is asked for.", unit="words", default=3, minimum=3)
    most: int = spec_field("Longest answer that is asked for.", unit="words", default=5, minimum=3)
    required: int = spec_field("Most words besides the last that an answer must hold.", default=2, minimum=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolsSettings:
    """A store of items whose final state decides."""

    items: int = spec_field("Items that exist.", default=8, minimum=2)
    places: int = spec_field("Places where an item can be.", default=3, minimum=2, maximum=500)
    objects: int = spec_field("Items that one task is about.", default=2, minimum=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScientificToolsSettings:
    """Chains over small scientific calculators."""

    elements: int = spec_field("Chemical elements, by atomic number.", default=30, minimum=4, maximum=54)
    terms: int = spec_field("Quantities that a question combines.", default=2, minimum=2, maximum=6)
    decimals: int = spec_field("Decimals of a molar mass.", default=0, minimum=0, maximum=3)
    largest: int = spec_field("Largest number on the way to an answer.", default=99, minimum=9)
    modulus: int = spec_field("`calculate` gives whole numbers modulo this; 0 for plain decimals.", default=100, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrailSettings:
    """A walk where a wrong turn leads into a wood that has other right turns."""

    horizon: int = spec_field("Right turns on the trail that a task asks for.", default=4, minimum=1, maximum=99)
    wood: int = spec_field("Places of the wood, of 100.", default=20, minimum=2, maximum=80)
    colors: int = spec_field("Turns to choose from at a place.", default=3, minimum=2, maximum=3)
    astray: float = spec_field("Share of tasks that start in the wood.", default=0.0, minimum=0, maximum=1)
    map_seed: int = spec_field("Seed of the map.", default=0, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerSettings:
    """Entries whose amount depends on the value before; a wrong one unbalances the books."""

    horizon: int = spec_field("Right entries that a task asks for.", default=4, minimum=1, maximum=99)
    unit: int = spec_field("Balanced values are its multiples below 100.", default=5, minimum=3, maximum=20)
    astray: float = spec_field("Share of tasks that start unbalanced.", default=0.0, minimum=0, maximum=1)
    book_seed: int = spec_field("Seed of the amounts due.", default=0, minimum=0)


SPLIT_DOC = "Which tasks are held out: a quarter, chosen by hash; or none (`train`), or all (`heldout`)."
Split = Literal["by_hash", "train", "heldout"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gsm8kSettings:
    """Grade-school mathematics (openai/grade-school-math)."""

    data: str = spec_field("JSONL of `question` and `answer`, which ends in `#### number`.", location=True)
    split: Split = spec_field(SPLIT_DOC, default="by_hash")


@dataclass(frozen=True, kw_only=True, slots=True)
class BfclSettings:
    """Single function calls of the Berkeley function-calling leaderboard."""

    data: str = spec_field("JSONL of `id`, `question` and `function`.", location=True)
    answers: str = spec_field("JSONL of `id` and `ground_truth`: which values each argument may have.", location=True)
    split: Split = spec_field(SPLIT_DOC, default="by_hash")


@dataclass(frozen=True, kw_only=True, slots=True)
class BfclMultiTurnSettings:
    """Stateful dialogues of the Berkeley function-calling leaderboard."""

    data: str = spec_field("JSONL of `id`, `question`, `initial_config` and `involved_classes`.", location=True)
    answers: str = spec_field("JSONL of `id` and `ground_truth`: the reference calls of every turn.", location=True)
    documents: str = spec_field("Folder of the functions' documents, one JSONL a service.", location=True)
    split: Split = spec_field(SPLIT_DOC, default="by_hash")


@dataclass(frozen=True, kw_only=True, slots=True)
class IfBenchSettings:
    """Prompts with constraints that a program can check (allenai/IFBench)."""

    data: str = spec_field("JSONL of `prompt`, `instruction_id_list` and `kwargs`.", location=True)
    split: Split = spec_field(SPLIT_DOC, default="heldout")


@dataclass(frozen=True, kw_only=True, slots=True)
class McpSettings:
    """Questions of a file, and the tools of a Model Context Protocol server."""

    command: tuple[str, ...] = spec_field(
        "Program of the server and its arguments, started without a shell for every episode.", item_minimum_count=1
    )
    data: str = spec_field("JSONL of `question`, `answer` and perhaps `calls`, which a demonstrator makes.", location=True)
    environment: tuple[str, ...] = spec_field("Names of environment variables that the server gets.", default=())
    start_seconds: float = spec_field("Time a server may take to start.", unit="seconds", default=30.0, exclusive_minimum=0)
    call_seconds: float = spec_field(
        "Time a call may take; then the server is ended.", unit="seconds", default=30.0, exclusive_minimum=0
    )
    observation_characters: int = spec_field("Most of an answer that a model sees.", unit="characters", default=20_000, minimum=1)
    restarts: int = spec_field("How often an episode may find a new server after one that ended.", default=2, minimum=0)
    split: Split = spec_field(SPLIT_DOC, default="by_hash")


DRAWN_WORLDS: dict[str, type] = {  # tasks are drawn from a graph; every setting has a default
    "search": SearchSettings,
    "engineering": EngineeringSettings,
    "science": ScienceSettings,
    "instructions": InstructionsSettings,
    "tools": ToolsSettings,
    "scientific_tools": ScientificToolsSettings,
    "trail": TrailSettings,
    "ledger": LedgerSettings,
}
DATA_WORLDS: dict[str, type] = {  # tasks are rows of files that a spec names
    "gsm8k": Gsm8kSettings,
    "bfcl": BfclSettings,
    "bfcl_multi_turn": BfclMultiTurnSettings,
    "ifbench": IfBenchSettings,
    "mcp": McpSettings,
}
BUILTIN_WORLDS: dict[str, type] = {**DRAWN_WORLDS, **DATA_WORLDS, **GENERATOR_WORLDS}

NO_MORE_THAN = {  # the first of two settings than the second
    "instructions": ("fewest", "most"),
    "tools": ("objects", "items"),
    "constraints": ("fewest", "most"),
    "search_walks": ("hops", "most_hops"),
}


def build_settings(world: str, settings: Mapping[str, Any], path: Path) -> tuple[Any, list[Problem]]:
    """The settings of a built-in world, complete with defaults, and every mistake in them."""
    value, problems = build(BUILTIN_WORLDS[world], settings, path)
    if not problems and world in NO_MORE_THAN:
        low, high = NO_MORE_THAN[world]
        fewer, more = getattr(value, low), getattr(value, high)
        if fewer > more:
            at = low if low in settings else high
            fix = f"at most {more}, or a larger `{high}`" if at == low else f"at least {fewer}, or a smaller `{low}`"
            problems.append(Problem(code="E0205", path=(*path, at), detail=f"`{low}` is {fewer}, and `{high}` is {more}", fix=fix))
    return value, problems


def location_settings(world: str | None) -> tuple[str, ...]:
    """The settings of a world that name a file or folder it reads."""
    if world in BUILTIN_WORLDS:
        return tuple(field.name for field in dataclasses.fields(BUILTIN_WORLDS[world]) if field.metadata["spec"].location)
    schema = settings_schema(world) if world is not None else None
    return tuple(name for name, one in properties_of(schema or {}).items() if one.get("format") == LOCATION_FORMAT)


def locations_of(world: str | None, settings: Mapping[str, Any]) -> dict[str, str]:
    """Of a world's settings, those that name a file or folder, as written."""
    return {name: settings[name] for name in location_settings(world) if isinstance(settings.get(name), str)}


def installed_locations(data: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Where a spec's data names files or folders that worlds of installed packages read, as `locations.LOCATIONS` does."""
    domains = data.get("domains")
    for name, domain in cast(dict[str, Any], domains).items() if isinstance(domains, dict) else ():
        world = cast(dict[str, Any], domain).get("world") if isinstance(domain, dict) else None
        if isinstance(world, str) and world not in BUILTIN_WORLDS:
            yield from (("domains", name, "settings", field) for field in location_settings(world))
