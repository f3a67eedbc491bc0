"""A number that can explain itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One estimated number with the formula that gave it. `inputs` names every symbol of the formula."""

    name: str
    value: float
    unit: str  # bytes | parameters | FLOPs | tokens | seconds | ...
    formula: str
    inputs: Mapping[str, float] = field(default_factory=dict[str, float])

    def explained(self) -> str:
        """The formula, then its symbols with their values."""
        given = ", ".join(f"{name} = {shown(value)}" for name, value in self.inputs.items())
        return f"{self.formula}; {given}" if given else self.formula


def shown(value: float) -> str:
    """A number for people: whole where it is whole, else four digits."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}"


def with_unit(value: float, unit: str) -> str:
    """A number with its unit, scaled to be read: bytes in GiB, times in hours, large counts in powers."""
    if unit == "bytes":
        for size, name in ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.2f} {name}"
        return f"{value:.0f} B"
    if unit == "seconds":
        for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
            if value >= 2 * size:
                return f"{value / size:.1f} {name}"
        return f"{value:.2f} seconds"
    for size, name in ((1e21, "e21"), (1e18, "e18"), (1e15, "e15"), (1e12, "e12"), (1e9, "e9"), (1e6, "e6")):
        if abs(value) >= size:
            return f"{value / size:.2f}{name} {unit}"
    return f"{shown(value)} {unit}"
