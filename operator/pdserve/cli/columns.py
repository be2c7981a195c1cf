"""Plain text tables and ages, as kubectl prints them."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Columns padded to their widest cell; empty string for no rows."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        indent + "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )


def age(seconds: float) -> str:
    """`42s`, `5m`, `3h`, `2d` of so many seconds: one unit, rounded down; never negative."""
    left = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if left >= 2 * size or (left >= size and unit != "m"):
            return f"{left // size}{unit}"
    return f"{left}s"
