"""MathAPI: a calculator without state."""

import math
import statistics
from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any

from .base import Api, require

# Factors to one SI base unit of each kind. "c", "f" and "k" are temperatures and need more than a factor.
SI = {"km": 1e3, "m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
IMPERIAL = {
    ("in", "cm"): 2.54, ("ft", "m"): 0.3048, ("yd", "m"): 0.9144, ("miles", "km"): 1.609344,
    ("lb", "kg"): 0.45359237, ("oz", "g"): 28.349523125, ("gal", "l"): 3.785411784,
}  # fmt: skip


class MathAPI(Api):
    """Functions of numbers."""

    def add(self, a: float, b: float) -> dict[str, Any]:
        return {"result": a + b}

    def subtract(self, a: float, b: float) -> dict[str, Any]:
        return {"result": a - b}

    def multiply(self, a: float, b: float) -> dict[str, Any]:
        return {"result": a * b}

    def divide(self, a: float, b: float) -> dict[str, Any]:
        require(b != 0, "cannot divide by zero")
        return {"result": a / b}

    def power(self, base: float, exponent: float) -> dict[str, Any]:
        require(abs(exponent) <= 1000 and abs(base) <= 1e100, "the numbers are too large")
        try:
            result = base**exponent
        except (OverflowError, ZeroDivisionError) as error:
            return {"error": str(error)}
        require(not isinstance(result, complex), "the result is not a real number")
        return {"result": result}

    def absolute_value(self, number: float) -> dict[str, Any]:
        return {"result": abs(number)}

    def percentage(self, part: float, whole: float) -> dict[str, Any]:
        require(whole != 0, "the whole cannot be zero")
        return {"result": part / whole * 100}

    def round_number(self, number: float, decimal_places: int = 0) -> dict[str, Any]:
        return {"result": round(number, decimal_places)}

    def square_root(self, number: float, precision: int) -> dict[str, Any]:
        require(number >= 0, "a negative number has no real square root")
        with localcontext() as context:
            context.prec = _precision(precision)
            return {"result": float(Decimal(str(number)).sqrt())}

    def logarithm(self, value: float, base: float, precision: int) -> dict[str, Any]:
        require(value > 0 and base > 0 and base != 1, "value and base must be positive, and base not 1")
        with localcontext() as context:
            context.prec = _precision(precision)
            return {"result": float(+(Decimal(str(value)).ln() / Decimal(str(base)).ln()))}

    def mean(self, numbers: list[float]) -> dict[str, Any]:
        require(numbers, "the mean of no numbers is undefined")
        return {"result": sum(numbers) / len(numbers)}

    def standard_deviation(self, numbers: list[float]) -> dict[str, Any]:
        require(numbers, "the deviation of no numbers is undefined")
        return {"result": statistics.pstdev(numbers)}

    def sum_values(self, numbers: list[float]) -> dict[str, Any]:
        require(numbers, "there is nothing to sum")
        return {"result": math.fsum(numbers)}

    def min_value(self, numbers: list[float]) -> dict[str, Any]:
        require(numbers, "there is no least of no numbers")
        return {"result": min(numbers)}

    def max_value(self, numbers: list[float]) -> dict[str, Any]:
        require(numbers, "there is no greatest of no numbers")
        return {"result": max(numbers)}

    def si_unit_conversion(self, value: float, unit_in: str, unit_out: str) -> dict[str, Any]:
        require(unit_in in SI and unit_out in SI, f"units are {', '.join(SI)}")
        return {"result": value * SI[unit_in] / SI[unit_out]}

    def imperial_si_conversion(self, value: float, unit_in: str, unit_out: str) -> dict[str, Any]:
        if (unit_in, unit_out) == ("c", "f"):
            return {"result": value * 9 / 5 + 32}
        if (unit_in, unit_out) == ("f", "c"):
            return {"result": (value - 32) * 5 / 9}
        factors: Mapping[tuple[str, str], float] = {**IMPERIAL, **{(out, into): 1 / by for (into, out), by in IMPERIAL.items()}}
        require((unit_in, unit_out) in factors, f"cannot convert from {unit_in} to {unit_out}")
        return {"result": value * factors[unit_in, unit_out]}


def _precision(digits: int) -> int:
    require(1 <= digits <= 100, "precision is between 1 and 100 digits")
    return digits
