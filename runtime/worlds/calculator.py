"""The `calculate` tool of the science worlds."""

from .base import Unreadable
from .graph import Action

OPERATORS = ("+", "-", "*", "/")
LARGEST = 1e15  # results beyond it are refused

CALCULATE = Action(
    name="calculate",
    description="Calculate with two numbers.",
    parameters={
        "a": {"type": "number", "description": "First number."},
        "operator": {"type": "string", "enum": list(OPERATORS), "description": "What to do."},
        "b": {"type": "number", "description": "Second number."},
    },
    observation="the result",
)


def calculate(a: float, operator: str, b: float, modulus: int) -> str:
    """The result as a word. With a modulus, quotients are rounded down and results are whole numbers below it.

    Raises:
        Unreadable: an unknown operator, a division by zero or a result beyond 1e15.
    """
    if operator not in OPERATORS or (operator == "/" and b == 0):
        raise Unreadable
    if modulus:
        whole_a, whole_b = int(a), int(b)
        if operator == "/" and whole_b == 0:
            raise Unreadable
        results = {"+": whole_a + whole_b, "-": whole_a - whole_b, "*": whole_a * whole_b}
        return str((whole_a // whole_b if operator == "/" else results[operator]) % modulus)
    result = a / b if operator == "/" else {"+": a + b, "-": a - b, "*": a * b}[operator]
    if abs(result) > LARGEST:
        raise Unreadable
    return f"{result:.12g}"


def same_number(text: str, value: float) -> bool:
    """Whether a text is a number within a millionth of a value."""
    try:
        number = float(text)
    except ValueError:
        return False
    return abs(number - value) <= 1e-6 * max(1.0, abs(value))
