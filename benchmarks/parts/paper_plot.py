"""A picture of claims: a row for each, a mark for each assumption, a line at the paper's figure."""

from __future__ import annotations

import html
from collections.abc import Sequence

from benchmarks.parts.paper_claims import Claim

WIDTH, HEIGHT, LEFT, TOP = 620, 44, 10, 18


def picture(claims: Sequence[Claim]) -> str:
    """SVG; each row has its own scale, whose ends are written below it."""
    rows = "".join(_row(claim, number) for number, claim in enumerate(claims))
    width, height = WIDTH + 2 * LEFT, (HEIGHT + TOP + 16) * len(claims) + 8
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' role='img' font-family='sans-serif' font-size='11'>"
        f"<rect width='{width}' height='{height}' fill='white'/>{rows}</svg>\n"
    )


def _row(claim: Claim, number: int) -> str:
    means = [p.mean for p in claim.points]
    low, high = min(*means, claim.paper, 0.0), max(*means, claim.paper)
    top = number * (HEIGHT + TOP + 16) + TOP

    def x(value: float) -> float:
        return LEFT + WIDTH * (value - low) / (high - low or 1.0)

    marks = "".join(
        f"<path d='M{x(p.mean):.1f} {top + 8}v{HEIGHT - 16}' stroke='#1b6ca8' stroke-opacity='0.5'>"
        f"<title>{html.escape(p.assumed)}: {p.mean:.3g} {html.escape(claim.unit)}</title></path>"
        for p in claim.points
    )
    at = x(claim.paper)
    return (
        f"<text x='{LEFT}' y='{top - 4}'>{html.escape(claim.what)}: paper "
        f"{claim.paper:g} {html.escape(claim.unit)} (red)</text>"
        f"<path d='M{LEFT} {top + HEIGHT / 2}h{WIDTH}' stroke='#bbb'/>{marks}"
        f"<path d='M{at:.1f} {top}v{HEIGHT}' stroke='#c23b22' stroke-width='2'/>"
        f"<text x='{LEFT}' y='{top + HEIGHT + 10}'>{low:.3g}</text>"
        f"<text x='{LEFT + WIDTH}' y='{top + HEIGHT + 10}' text-anchor='end'>{high:.3g}</text>"
    )
