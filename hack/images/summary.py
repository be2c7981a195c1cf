"""What was built, for people (a table) and for scripts (JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hack.images.containers import Image

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Built:
    """One image of this run. `base` is None where it stands on nothing known."""

    image: Image
    base: Image | None
    seconds: float

    @property
    def own(self) -> int:
        """Bytes of the layers that are not the base's."""
        return self.image.size - (self.base.size if self.base else 0)


def table(built: Sequence[Built]) -> str:
    """One line per image, sizes in MiB."""
    rows: list[tuple[str, ...]] = [("image", "MiB", "of base", "own", "seconds", "base")]
    for b in built:
        shared = b.image.size - b.own
        sizes = (f"{size / MIB:.1f}" for size in (b.image.size, shared, b.own))
        rows.append((b.image.name, *sizes, f"{b.seconds:.1f}", b.base.name if b.base else "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1

    def line(row: tuple[str, ...]) -> str:
        cells = [
            text.ljust(width) if i in (0, last) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))


def document(built: Sequence[Built], seconds: float) -> dict[str, Any]:
    """`build/images.json`."""
    return {
        "images": [
            {
                "name": b.image.name.rpartition(":")[0],
                "tag": b.image.name.rpartition(":")[2],
                "id": b.image.id,
                "bytes": b.image.size,
                "own_bytes": b.own,
                "base": b.base.name if b.base else None,
                "architecture": b.image.architecture,
                "seconds": round(b.seconds, 1),
            }
            for b in built
        ],
        "seconds": round(seconds, 1),
    }
