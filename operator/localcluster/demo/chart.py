"""Time plots as SVG text, drawn once for wide and once for narrow screens.

Colours are CSS variables of the page (`--own`, `--other`, `--quiet`, `--ink`, `--muted`,
`--line`), so that one drawing serves light and dark mode. No line is drawn under another: what
lies behind is an area, or a bar beside another bar. `Figure.alt` says in words what a figure
shows, for readers who cannot see it. This module contains nothing of pdserve.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

WIDE, NARROW = 920, 350
"""Widths in CSS pixels; text has the same size in both."""
_LEFT, _RIGHT = 44, 16
_ROW = 16
"""Height of a line of text."""
_HEAD = 26
"""Room above each panel for its title."""
_DOT = 2.6
_GAP = 0.16
"""Share of a window's width that stays free beside its bars."""


@dataclass(frozen=True)
class Layer:
    """One set of points; `x` in seconds, for `bars` where each window begins.

    `area` and `line` hold a value until the next one. `tone` is whose values they are: `own` of
    what the page is about, `other` of what it is compared with, `quiet` what stands behind.
    """

    label: str
    kind: Literal["area", "line", "bars", "dots", "crosses"]
    tone: Literal["own", "other", "quiet"]
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `top` ends the upright axis (None: the largest value)."""

    title: str
    layers: Sequence[Layer]
    top: float | None = None
    target: tuple[float, str] | None = None
    """A dashed line at this height, and its name."""
    unit: str = ""
    """Written behind each number of the upright axis."""
    height: int = 110


@dataclass(frozen=True)
class Figure:
    """Panels above each other over the same time, 0 to `end` seconds.

    `marks` are (second, label), each an upright line through all panels. `window` is the length of
    what one bar stands for, in seconds.
    """

    key: str
    title: str
    says: str
    """What to see in it, one or two sentences."""
    alt: str
    """The same in words and numbers, for those who cannot see it."""
    end: float
    panels: Sequence[Panel]
    marks: Sequence[tuple[float, str]] = ()
    window: float = 10.0


def drawing(figure: Figure, width: int) -> str:
    """The figure as one `<svg>` element, `width` CSS pixels wide."""
    name = f"{figure.key}-{width}"
    scale = _Scale(figure.end, width)
    y = float(_ROW * len(figure.marks) + 4)
    bottom = y + sum(_HEAD + panel.height for panel in figure.panels)
    parts = list(_marks(figure, scale, y, bottom))  # first, so that they hide nothing
    for panel in figure.panels:
        y += _HEAD
        parts += _panel(figure, panel, scale, y)
        y += panel.height
    height = bottom + 2 * _ROW + 8
    parts += _time_axis(scale, bottom, narrow=width < WIDE)
    return (
        f'<svg class="w{width}" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'height="{height:g}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{html.escape(figure.title)}</title>'
        f'<desc id="{name}-d">{html.escape(figure.alt)}</desc>{"".join(parts)}</svg>'
    )


def legend(figure: Figure) -> str:
    """A list of what each sign of the figure means, as HTML."""
    seen: dict[tuple[str, str, str], None] = {}
    for panel in figure.panels:
        for layer in panel.layers:
            seen.setdefault((layer.label, layer.kind, layer.tone))
    targets = {p.target[1]: None for p in figure.panels if p.target}
    items = [f"<li>{_swatch(kind, tone)}{html.escape(label)}</li>" for label, kind, tone in seen]
    items += [f"<li>{_swatch('target', 'quiet')}{html.escape(name)}</li>" for name in targets]
    return f'<ul class="legend">{"".join(items)}</ul>'


def ticks(top: float, most: int = 4) -> list[float]:
    """Round numbers from 0 to `top`, at most `most` steps; steps are 1, 2 or 5 times a power of 10.

    Raises:
        ValueError: `top` is not positive.
    """
    if top <= 0:
        raise ValueError(f"top: {top}, not above 0")
    power = 10.0 ** math.floor(math.log10(top / most))
    step = next(power * f for f in (1, 2, 5, 10, 20) if top / (power * f) <= most)
    return [i * step for i in range(math.floor(top / step + 1e-9) + 1)]


class _Scale:
    """Seconds to pixels from the left."""

    def __init__(self, end: float, width: int) -> None:
        self.end = end
        self.left, self.right = float(_LEFT), float(width - _RIGHT)

    def __call__(self, seconds: float) -> float:
        inside = min(max(seconds, 0.0), self.end)
        return self.left + (self.right - self.left) * inside / self.end


def _panel(figure: Figure, panel: Panel, scale: _Scale, y: float) -> Iterator[str]:
    """The panel with its upper edge at `y`."""
    highest = max((v for layer in panel.layers for v in layer.y), default=1.0)
    top = panel.top if panel.top is not None else max(highest, 1.0) * 1.08
    bottom = y + panel.height

    def up(value: float) -> float:
        return bottom - panel.height * min(max(value, 0.0), top) / top

    yield _text(scale.left, y - 6, panel.title, "title")
    for tick in ticks(top):
        yield _line(scale.left, up(tick), scale.right, up(tick), "grid")
        yield _text(scale.left - 6, up(tick) + 4, f"{tick:g}{panel.unit}", "end")
    bars = [layer for layer in panel.layers if layer.kind == "bars"]
    for layer in panel.layers:
        points = [(scale(a), up(b)) for a, b in zip(layer.x, layer.y, strict=True)]
        if layer.kind == "bars":
            yield from _bars(layer, scale, up, figure.window, bars.index(layer), len(bars))
        elif layer.kind in ("dots", "crosses"):
            yield from (_sign(layer, at) for at in points)
        elif points:
            yield _steps(layer, points, scale.right, bottom)
    if panel.target is not None:
        yield _line(scale.left, up(panel.target[0]), scale.right, up(panel.target[0]), "target")


def _bars(
    layer: Layer,
    scale: _Scale,
    up: Callable[[float], float],
    window: float,
    place: int,
    places: int,
) -> Iterator[str]:
    """Bars of one layer, the `place`-th of `places` that share each window."""
    for start, value in zip(layer.x, layer.y, strict=True):
        left, right = scale(start), scale(start + window)
        gap = (right - left) * _GAP / 2
        width = (right - left - 2 * gap) / places
        height = max(up(0.0) - up(value), 1.5)  # an empty bar is still to be seen
        yield (
            f'<rect class="bar {layer.tone}" x="{left + gap + place * width:.1f}" '
            f'y="{up(0.0) - height:.1f}" width="{width - 1:.1f}" height="{height:.1f}"/>'
        )


def _sign(layer: Layer, at: tuple[float, float]) -> str:
    x, y = at
    if layer.kind == "dots":
        return f'<circle class="dot {layer.tone}" cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}"/>'
    d = _DOT + 0.6
    path = f"M{x - d:.1f} {y - d:.1f}l{2 * d:g} {2 * d:g}m0 {-2 * d:g}l{-2 * d:g} {2 * d:g}"
    return f'<path class="cross {layer.tone}" d="{path}"/>'


def _steps(layer: Layer, points: Sequence[tuple[float, float]], right: float, floor: float) -> str:
    (x, y), *rest = points
    path = [f"M{x:.1f} {y:.1f}"]
    for x, y in rest:
        path.append(f"H{x:.1f}V{y:.1f}")
    path.append(f"H{right:.1f}")
    if layer.kind == "area":
        path.append(f"V{floor:.1f}H{points[0][0]:.1f}Z")
    return f'<path class="{layer.kind} {layer.tone}" d="{"".join(path)}"/>'


def _marks(figure: Figure, scale: _Scale, top: float, bottom: float) -> Iterator[str]:
    """Upright lines with their names in rows above; left of the line where right is no room."""
    for row, (at, label) in enumerate(figure.marks):
        y = top - _ROW * (len(figure.marks) - row) + 10
        x = scale(at)
        if x + 6.6 * len(label) > scale.right:
            yield _text(x - 4, y, label, "mark end")
        else:
            yield _text(x + 4, y, label, "mark")
        yield _line(x, y - 10, x, bottom, "mark")


def _time_axis(scale: _Scale, y: float, *, narrow: bool) -> Iterator[str]:
    yield _line(scale.left, y, scale.right, y, "axis")
    for tick in ticks(scale.end, 5 if narrow else 10):
        yield _text(scale(tick), y + _ROW, f"{tick:g}", "middle")
    middle = (scale.left + scale.right) / 2
    yield _text(middle, y + 2 * _ROW + 2, "seconds since the requests began", "middle")


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    return f'<line class="{classes}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _swatch(kind: str, tone: str) -> str:
    inner = {
        "area": f'<rect class="area {tone}" x="1" y="2" width="18" height="10"/>',
        "bars": f'<rect class="bar {tone}" x="3" y="1" width="12" height="12"/>',
        "line": f'<line class="line {tone}" x1="0" y1="7" x2="20" y2="7"/>',
        "target": '<line class="target" x1="0" y1="7" x2="20" y2="7"/>',
        "dots": f'<circle class="dot {tone}" cx="10" cy="7" r="3.2"/>',
        "crosses": f'<path class="cross {tone}" d="M6 3l8 8m0 -8l-8 8"/>',
    }[kind]
    return f'<svg class="swatch" width="20" height="14" aria-hidden="true">{inner}</svg>'
