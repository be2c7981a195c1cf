"""Fits the profile's three coefficients to times, by relative least squares without negatives.

Each row is weighted by the inverse of its time, so that short and long times count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pdserve.ratio.profile import Triple

Row = tuple[Triple, float]
"""What the coefficients are multiplied by, and the seconds that came of it."""


class FitError(ValueError):
    """The times do not determine a profile; the message says what is missing."""


def fit_times(rows: Sequence[Row]) -> Triple:
    """Coefficients (0 or more) with the least sum of squared relative errors.

    Raises:
        FitError: there are fewer than three rows, or no coefficients explain them.
    """
    if len(rows) < 3:
        raise FitError(f"{len(rows)} measured times: want at least 3, of different sizes")
    scaled = [(tuple(x / seconds for x in terms), 1.0) for terms, seconds in rows]
    best: tuple[float, Triple] | None = None
    for size in (3, 2, 1):
        for chosen in combinations(range(3), size):
            found = _solved(scaled, chosen)
            if found is None or min(found) < 0.0:
                continue
            error = sum((_dot(found, terms) - want) ** 2 for terms, want in scaled)
            if best is None or error < best[0]:
                best = (error, found)
    if best is None:
        raise FitError("the measured times do not differ in size: want several batches and lengths")
    return best[1]


def mean_error(rows: Sequence[Row], coefficients: Triple) -> float:
    """Mean relative error of the fit on its rows, 0 or more."""
    return sum(abs(_dot(coefficients, terms) / s - 1.0) for terms, s in rows) / len(rows)


def _dot(coefficients: Triple, terms: Sequence[float]) -> float:
    return sum(c * x for c, x in zip(coefficients, terms, strict=True))


def _solved(rows: Sequence[tuple[Sequence[float], float]], chosen: Sequence[int]) -> Triple | None:
    """The normal equations of the chosen coefficients, others 0; None where they are singular."""
    scale = [max(abs(terms[i]) for terms, _ in rows) or 1.0 for i in chosen]
    matrix = [
        [sum(t[i] * t[j] for t, _ in rows) / (a * b) for j, b in zip(chosen, scale, strict=True)]
        + [sum(t[i] * want for t, want in rows) / a]
        for i, a in zip(chosen, scale, strict=True)
    ]
    n = len(chosen)
    for column in range(n):
        pivot = max(range(column, n), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < 1e-12:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        for row in range(n):
            if row != column:
                factor = matrix[row][column] / matrix[column][column]
                matrix[row] = [
                    x - factor * y for x, y in zip(matrix[row], matrix[column], strict=True)
                ]
    found = [0.0, 0.0, 0.0]
    for row, (index, a) in enumerate(zip(chosen, scale, strict=True)):
        found[index] = matrix[row][n] / matrix[row][row] / a
    return found[0], found[1], found[2]
