"""The exception that ends a schedule when an invariant is broken."""

from __future__ import annotations


class Violation(Exception):  # noqa: N818 - an invariant that does not hold, not an error
    """An invariant was broken; `number` is the invariant's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"invariant {number}: {message}")
        self.number = number
