"""Draws the picture at the top of README.md, once for light and once for dark pages.

`generate.py` writes what `pictures` returns; nothing is drawn by hand, so that a change of a word
or a colour is a change of one line here.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, fields

FOLDER = "docs/pictures"
ALT = (
    "Requests of two kinds, chat and search, go through a gateway to P/D groups of their own. In "
    "each group prefill instances read prompts and hand their KV cache to decode instances, which "
    "write answers. The operator measures the time to the first token, places, links and repairs "
    "instances, and adds prefill to chat when its prompts get longer."
)
"""What the picture shows, in words; README.md says the same."""
_WIDTH, _HEIGHT = 800, 440
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclass(frozen=True)
class Palette:
    """Colours of one picture."""

    ink: str
    muted: str
    box: str
    edge: str
    chat: str
    chat_fill: str
    search: str
    search_fill: str
    operator: str


LIGHT = Palette(
    ink="#1f2933", muted="#52606d", box="#f5f7fa", edge="#c3cbd5",
    chat="#2f6fde", chat_fill="#dce8fd", search="#b85f0b", search_fill="#fdeedb",
    operator="#14754f",
)  # fmt: skip
DARK = Palette(
    ink="#e6eaef", muted="#a3afbd", box="#1d232b", edge="#465361",
    chat="#74a5ff", chat_fill="#1d3157", search="#f0a04b", search_fill="#452c10",
    operator="#5fd3a2",
)  # fmt: skip


def pictures() -> dict[str, str]:
    """Path in the repository -> SVG, for both palettes."""
    return {f"{FOLDER}/pdserve-{name}.svg": _draw(p) for name, p in _palettes().items()}


def _palettes() -> dict[str, Palette]:
    return {"light": LIGHT, "dark": DARK}


def _draw(p: Palette) -> str:
    parts = [
        *_requests(p),
        *_box(p, 190, 20, 110, 286, "gateway"),
        _text(p, 245, 78, "OpenAI API", p.muted, 14, "middle"),
        *_group(p, 20, "chat", p.chat, p.chat_fill, prefill=2, decode=4, added=1),
        *_group(p, 172, "search", p.search, p.search_fill, prefill=2, decode=1),
        *_operator(p),
    ]
    markers = "".join(
        f'<marker id="{field.name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" '
        f'fill="{getattr(p, field.name)}"/></marker>'
        for field in fields(p)
        if field.name in ("chat", "search", "operator")
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="{_FONT}">\n'
        f"<title>pdserve</title>\n<desc>{html.escape(ALT)}</desc>\n"
        f"<defs>{markers}</defs>\n{body}\n</svg>\n"
    )


def _requests(p: Palette) -> list[str]:
    """The two kinds of requests, and their way into the gateway and back."""
    return [
        _text(p, 4, 66, "chat", p.chat, 17, bold=True),
        _text(p, 4, 88, "questions,", p.muted, 14),
        _text(p, 4, 106, "long answers", p.muted, 14),
        _arrow(p.chat, "chat", 118, 86, 184, 86, both=True),
        _text(p, 4, 218, "search", p.search, 17, bold=True),
        _text(p, 4, 240, "long prompts,", p.muted, 14),
        _text(p, 4, 258, "short answers", p.muted, 14),
        _arrow(p.search, "search", 118, 238, 184, 238, both=True),
    ]


def _group(
    p: Palette,
    y: int,
    name: str,
    tone: str,
    fill: str,
    *,
    prefill: int,
    decode: int,
    added: int = 0,
) -> list[str]:
    """A P/D group with its upper edge at `y`; `added` prefill instances are drawn dashed."""
    middle = y + 66
    parts = _box(p, 346, y, 440, 134, "")
    parts.append(_text(p, 360, y + 26, f"P/D group of {name}", tone, 15, bold=True))
    parts.append(_arrow(tone, name, 300, middle, 340, middle))
    for i in range(prefill):
        parts.append(_instance(360 + 46 * i, middle - 20, tone, fill))
    for i in range(prefill, prefill + added):
        parts.append(_instance(360 + 46 * i, middle - 20, tone, "none", dashed=True))
        parts.append(_text(p, 360 + 46 * i + 19, middle + 6, "+1", tone, 15, "middle", bold=True))
    parts.append(_text(p, 360, middle + 44, "prefill reads prompts", p.ink, 14))
    parts.append(_arrow(tone, name, 506, middle, 584, middle))
    parts.append(_text(p, 545, middle - 8, "KV cache", p.muted, 13, "middle"))
    for i in range(decode):
        parts.append(_instance(592 + 46 * i, middle - 20, tone, fill))
    parts.append(_text(p, 592, middle + 44, "decode writes answers", p.ink, 14))
    return parts


def _operator(p: Palette) -> list[str]:
    steps = "measures time to first token → decides how many → places, links, repairs"
    return [
        f'<rect x="190" y="358" width="596" height="66" rx="10" fill="{p.box}" '
        f'stroke="{p.operator}" stroke-width="2"/>',
        _text(p, 206, 384, "operator", p.operator, 16, bold=True),
        _text(p, 206, 408, steps, p.ink, 15),
        _arrow(p.operator, "operator", 245, 310, 245, 351),
        _arrow(p.operator, "operator", 471, 356, 471, 312),
        _text(p, 259, 338, "figures", p.muted, 14),
        _text(p, 485, 338, "instances", p.muted, 14),
    ]


def _box(p: Palette, x: int, y: int, width: int, height: int, title: str) -> list[str]:
    box = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{p.box}" '
        f'stroke="{p.edge}" stroke-width="1.5"/>'
    )
    if not title:
        return [box]
    return [box, _text(p, x + width // 2, y + 28, title, p.ink, 16, "middle", bold=True)]


def _instance(x: int, y: int, tone: str, fill: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{x}" y="{y}" width="38" height="40" rx="6" fill="{fill}" '
        f'stroke="{tone}" stroke-width="2"{dash}/>'
    )


def _arrow(
    tone: str, marker: str, x1: int, y1: int, x2: int, y2: int, *, both: bool = False
) -> str:
    start = f' marker-start="url(#{marker})"' if both else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{tone}" stroke-width="2"'
        f'{start} marker-end="url(#{marker})"/>'
    )


def _text(
    p: Palette, x: int, y: int, text: str, color: str, size: int, anchor: str = "start",
    *, bold: bool = False,
) -> str:  # fmt: skip
    weight = ' font-weight="600"' if bold else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}"{place}{weight}>'
        f"{html.escape(text)}</text>"
    )
