"""Programs for the engineering tasks as Python functions: their source is what an oracle hands in.

Each takes `train`, pairs of features and label, and `rows`, features to predict the labels of. Plain Python, as the sandbox has it.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[Sequence[float]]
Program = Callable[[Sequence[tuple[Sequence[float], float]], Rows], list[float]]


def mean(train: Any, rows: Any) -> list[float]:
    """Predict the mean label."""
    return [sum(label for _, label in train) / len(train)] * len(rows)


def linear(train: Any, rows: Any) -> list[float]:
    """Least squares on the features as they are."""

    def features(row):
        return [1.0, *row]

    size = len(features(train[0][0]))
    table = [[1e-6 * (i == j) for j in range(size)] + [0.0] for i in range(size)]
    for row, label in train:
        values = features(row)
        for i in range(size):
            for j in range(size):
                table[i][j] += values[i] * values[j]
            table[i][size] += values[i] * label
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(table[r][i]))
        table[i], table[pivot] = table[pivot], table[i]
        for r in range(size):
            if r != i:
                ratio = table[r][i] / table[i][i]
                table[r] = [a - ratio * b for a, b in zip(table[r], table[i], strict=True)]
    weights = [table[i][size] / table[i][i] for i in range(size)]
    return [sum(w * v for w, v in zip(weights, features(row), strict=True)) for row in rows]


PLAIN = "return [1.0, *row]"
PAIRS = "return [1.0, *row, *(a * b for i, a in enumerate(row) for b in row[i:])]"
LAST_ONLY = "return [1.0, row[-1]]"


def source(program: Program) -> str:
    """A program's text, its function called `predict`."""
    text = inspect.getsource(program).replace(f"def {program.__name__}(", "def predict(", 1)
    return text.replace(": Any", "").replace(" -> list[float]", "")
