"""A page of an experiment: its table, and for each shape the counts and attainment over time.

One file without anything from elsewhere: pictures are SVG in the page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from pdserve.sim.experiments import Line

WIDTH, HEIGHT, LEFT, TOP = 460, 130, 44, 18
COLOURS = ("#1b6ca8", "#c23b22", "#2e8b57", "#8a4fbe", "#b8860b", "#5f6b6d", "#d1618f", "#008b8b")
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:64em}pre{overflow:auto}"
    "svg{margin:4px;max-width:100%;height:auto}"
    "text{font:11px system-ui,sans-serif;fill:currentColor}:root{color-scheme:light dark}"
)


def page(title: str, table: str, lines: Sequence[Line]) -> str:
    """The page as HTML text; `table` is printed as it is."""
    shapes = list(dict.fromkeys(line.shape for line in lines))
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><pre>{html.escape(table)}</pre>",
    ]
    for shape in shapes:
        parts.append(f"<h2>{html.escape(shape)}</h2>")
        mine = [line for line in lines if line.shape == shape]
        parts.append(_legend(mine))
        parts += [_counts(mine, 1, "prefills"), _counts(mine, 2, "decodes"), _attainment(mine)]
        parts.append(_rate(mine[0]))
    return "\n".join(parts) + "</html>\n"


def _legend(lines: Sequence[Line]) -> str:
    names = (
        f"<span style='color:{_colour(i)}'>&#9632; {html.escape(line.policy)}, seed {line.seed}"
        "</span>"
        for i, line in enumerate(lines)
    )
    return f"<p>{' '.join(names)}</p>"


def _counts(lines: Sequence[Line], column: int, title: str) -> str:
    end = 60.0 * max(len(line.series.rate) for line in lines)
    most = max(float(row[column]) for line in lines for row in line.series.counts)
    curves = []
    for line in lines:
        points: list[tuple[float, float]] = []
        for row in line.series.counts:
            if points:
                points.append((row[0], points[-1][1]))
            points.append((row[0], float(row[column])))
        points.append((end, points[-1][1]))
        curves.append(points)
    return _picture(title, curves, end, most)


def _attainment(lines: Sequence[Line]) -> str:
    curves = [
        [(60.0 * i, 100 * a) for i, a in enumerate(line.series.attainment) if a is not None]
        for line in lines
    ]
    end = 60.0 * max(len(line.series.rate) for line in lines)
    return _picture("met SLO, % of each minute", curves, end, 100.0)


def _rate(line: Line) -> str:
    points = [(60.0 * i, rate) for i, rate in enumerate(line.series.rate)]
    return _picture("requests/s", [points], 60.0 * len(points), max(line.series.rate))


def _picture(
    title: str, curves: Sequence[Sequence[tuple[float, float]]], end: float, most: float
) -> str:
    """Curves of (seconds, value) on common axes from 0."""
    most, end = most or 1.0, end or 1.0

    def x(seconds: float) -> float:
        return LEFT + WIDTH * seconds / end

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / most)

    drawn = [
        f"<polyline fill='none' stroke='{_colour(i)}' points='"
        + " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in curve)
        + "'/>"
        for i, curve in enumerate(curves)
    ]
    width, height = WIDTH + LEFT + 8, HEIGHT + TOP + 18
    return (
        f"<svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' role='img'>"
        f"<text x='{LEFT}' y='12'>{html.escape(title)}</text>"
        f"<text x='2' y='{TOP + 10}'>{most:.4g}</text><text x='2' y='{TOP + HEIGHT}'>0</text>"
        f"<text x='{LEFT + WIDTH - 40}' y='{TOP + HEIGHT + 14}'>{end / 60:.0f} min</text>"
        f"<path d='M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}' fill='none' stroke='#999'/>"
        f"{''.join(drawn)}</svg>"
    )


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
