"""How a field of the language is declared: its documentation, its limits and what it may change.

A spec class is a frozen dataclass whose every field comes from `spec_field`. Everything else (JSON Schema, validation,
`polymath explain`, the two digests) is derived from these declarations, so a field is described once.
"""

import dataclasses
from collections.abc import Callable
from enum import StrEnum
from typing import Any

LOCATION_FORMAT = "uri-reference"  # how a JSON Schema marks a setting that names a file or folder


class Identity(StrEnum):
    """What changing a field changes."""

    NUMERICS = "numerics"  # the weights that come out
    PLACEMENT = "placement"  # where and how fast they are computed
    LABEL = "label"  # only what things are called or shown


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FieldInfo:
    """The declaration of one field.

    Limits apply to numbers; `item_minimum_count` to lists and mappings. `reference` names the collection that a string must
    be a key of ("domains", "teachers"), so that a misspelt name gets a suggestion; a list of such names is `distinct`.
    """

    doc: str
    identity: Identity
    unit: str | None = None
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    exclusive_maximum: float | None = None
    limit_reason: str | None = None  # why the limits are what they are, where that is not plain
    pattern: str | None = None
    item_minimum_count: int | None = None
    distinct: bool = False  # no item of a list may stand in it twice
    reference: str | None = None
    key: str | None = None  # the name in YAML where it is a Python keyword ("from")
    location: bool = False  # names a file or folder that is read: locked by its content, its place outside the digests
    examples: tuple[Any, ...] = ()
    numerics_when: Callable[[Any], bool] | None = None  # of which values, as plain data, the identity is numerics after all

    @property
    def is_set(self) -> bool:
        """Whether the items of a list must differ."""
        return self.distinct or self.reference is not None

    def identity_of(self, value: Any) -> Identity:
        """What changes with this value of the field, as plain data."""
        return Identity.NUMERICS if self.numerics_when is not None and self.numerics_when(value) else self.identity


def is_given(value: Any) -> bool:
    """Whether a field that may be left out is there."""
    return value is not None


def spec_field(
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Callable[[], Any] | Any = dataclasses.MISSING,
    identity: Identity = Identity.NUMERICS,
    **info: Any,
) -> Any:
    """Declare a field. Without a default it is required."""
    metadata = {"spec": FieldInfo(doc=doc, identity=identity, **info)}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, metadata=metadata)
    return dataclasses.field(metadata=metadata)


def field_info(field: dataclasses.Field[Any]) -> FieldInfo:
    """The declaration behind a dataclass field."""
    return field.metadata["spec"]


def yaml_name(field: dataclasses.Field[Any]) -> str:
    """The field's name as a user writes it."""
    return field_info(field).key or field.name
