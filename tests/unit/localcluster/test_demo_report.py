"""The demo's report: figures that can be read, in words and in both lights, and nothing unsaid."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.support.demo_shift import measured, watch

from localcluster.demo import figures, judge
from localcluster.demo.chart import NARROW, WIDE, Figure, Layer, Panel, drawing, legend, ticks
from localcluster.demo.report import Report, ResultLine

SOURCES = Path(figures.__file__).parent
SVG = "{http://www.w3.org/2000/svg}"
SHORT = re.compile(r"\b(?:TTFT|TPOT|KV|SLO|P/D|PD|ITL|\d+P\d+D|E2E|p9\d)\b")
"""Abbreviations that the report would have to explain."""


def report(**how: object) -> Report:
    m = measured(**how)  # type: ignore[arg-type]
    made = Report({"pdserve": "1"}, {"control period": "10 s"})
    made.claims += judge.claims(m)
    made.comparison = judge.comparison(m)
    made.shift += figures.of_shift(m)
    made.loss.append(figures.loss(watch(), 20.0, 3.0, 40.0))
    return made


def every_figure() -> list[Figure]:
    made = report()
    return [*made.shift, *made.loss]


def parsed(figure: Figure, width: int) -> ElementTree.Element:
    text = drawing(figure, width).replace("<svg ", f'<svg xmlns="{SVG.strip("{}")}" ', 1)
    return ElementTree.fromstring(text)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("figure", every_figure(), ids=lambda f: f.key)
def test_a_figure_says_in_words_what_it_shows(figure: Figure, width: int) -> None:
    svg = parsed(figure, width)
    assert svg.attrib["role"] == "img"
    named = svg.attrib["aria-labelledby"].split()
    told = {e.attrib["id"]: e.text for e in svg if e.tag in (f"{SVG}title", f"{SVG}desc")}
    assert [told[name] for name in named] == [figure.title, figure.alt]
    assert re.search(r"\d", figure.alt), "numbers, too"


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("figure", every_figure(), ids=lambda f: f.key)
def test_nothing_is_drawn_outside_of_the_frame(figure: Figure, width: int) -> None:
    svg = parsed(figure, width)
    height = float(svg.attrib["height"])
    assert float(svg.attrib["width"]) == width
    for element in svg.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.attrib.get(name, 0)) <= width
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.attrib.get(name, 0)) <= height


def test_bars_of_two_services_stand_beside_each_other() -> None:
    [figure] = [f for f in every_figure() if f.key == "attainment"]
    bars = [
        (float(r.attrib["x"]), float(r.attrib["x"]) + float(r.attrib["width"]), r.attrib["class"])
        for r in parsed(figure, NARROW).iter(f"{SVG}rect")
    ]
    assert {tone for *_, tone in bars} == {"bar own", "bar other"}
    in_order = sorted(bars)
    assert all(a[1] <= b[0] + 0.11 for a, b in itertools.pairwise(in_order))


def test_of_two_lines_of_a_panel_none_hides_the_other() -> None:
    """Equal values show both: one is a line, the other an area or a bar of its own."""
    for figure in every_figure():
        for panel in figure.panels:
            kinds = [layer.kind for layer in panel.layers]
            assert kinds.count("line") <= 1, (figure.key, panel.title)
            assert kinds.count("area") <= 1, (figure.key, panel.title)
            if "line" in kinds:
                assert kinds[-1] == "line", "drawn above the area"


def test_every_refused_request_is_a_cross() -> None:
    [figure] = [f for f in every_figure() if f.key == "first-token"]
    crosses = [
        p for p in parsed(figure, WIDE).iter(f"{SVG}path") if p.attrib["class"].startswith("cross")
    ]
    made = judge.comparison(measured())
    assert len(crosses) == made.own.refused + made.fixed.refused


@pytest.mark.parametrize(
    ("top", "most", "want"),
    [
        (4.3, 4, [0, 2, 4]), (100, 4, [0, 50, 100]), (32, 4, [0, 10, 20, 30]), (1, 4, [0, 0.5, 1]),
        (100, 10, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]), (0.07, 4, [0, 0.02, 0.04, 0.06]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers(top: float, most: int, want: list[float]) -> None:
    assert ticks(top, most) == pytest.approx(want)


@pytest.mark.parametrize("top", [0, -1])
def test_there_are_no_ticks_up_to_nothing(top: float) -> None:
    with pytest.raises(ValueError, match="not above 0"):
        ticks(top)


def test_an_empty_layer_and_flat_values_draw() -> None:
    panel = Panel("p", [Layer("a", "area", "own", [], []), Layer("b", "line", "own", [0], [0])])
    assert "<svg" in drawing(Figure("k", "t", "s", "a", 10, [panel]), WIDE)


def test_a_legend_names_each_sign_once() -> None:
    [figure] = [f for f in every_figure() if f.key == "first-token"]
    names = re.findall(r"</svg>([^<]+)</li>", legend(figure))
    assert names == ["with pdserve", "refused or failed", "with fixed numbers", "target, 2 s"]


def test_labels_are_escaped() -> None:
    page = Report({"a<b": "c&d"}, {}, [ResultLine("n", "x < y", "<script>", ok=True)]).to_html()
    assert "<script>" not in page
    assert "x &lt; y" in page


def test_it_begins_with_the_result_in_one_sentence() -> None:
    page = report().to_html()
    first = re.sub(r"<[^>]+>", "", page.partition("<body>")[2]).strip().splitlines()[0]
    assert first == report().headline
    assert "100% in time again" in first
    assert "ended at 0%" in first


def test_what_did_not_hold_comes_first() -> None:
    made = report(own_bad_until=100.0)
    assert made.headline.startswith("Not everything held: the first token is in time for 90%")
    assert '<header class="bad">' in made.to_html()
    assert "did not hold" in made.to_html()


def test_it_needs_nothing_but_itself() -> None:
    page = report().to_html()
    assert not re.search(r"<script|<link|<img|src=|https?:(?!//www\.w3\.org)", page)


def test_it_has_light_and_dark_and_a_form_for_narrow_screens() -> None:
    page = report().to_html()
    light, dark = re.findall(r":root \{([^}]*)\}", page)
    names = re.compile(r"--\w+(?=:)")
    assert light != dark
    assert set(re.findall(r"var\((--\w+)\)", page)) <= set(names.findall(light))
    assert set(names.findall(light)) == set(names.findall(dark))
    assert page.count(f'<svg class="w{WIDE}"') == page.count(f'<svg class="w{NARROW}"') == 4


def test_every_sign_has_its_style() -> None:
    page = report().to_html()
    style = page.partition("<style>")[2].partition("</style>")[0]
    used = set(re.findall(r'<(?:path|rect|circle|line)[^>]*class="([^"]+)"', page))
    assert len(used) > 10
    for kind, *tone in map(str.split, used):
        assert f"svg .{kind}" in style or f"svg line.{kind}" in style, kind
        if tone:
            assert f"svg .{kind}.{tone[0]}" in style, (kind, tone)


def test_no_abbreviation_is_left_unexplained() -> None:
    page = report().to_html()
    visible = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    assert SHORT.findall(visible) == []


def test_no_claim_or_figure_is_written_with_abbreviations() -> None:
    """Of the steps that need a cluster, the words are checked where they are written."""
    found = []
    for path in SOURCES.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(call, "func", None), "id", "")
            if isinstance(call, ast.Call) and name in {"ResultLine", "Figure", "Panel", "Layer"}:
                words = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant)]
                found += [w for w in words if isinstance(w, str) and SHORT.search(w)]
    assert found == []


def test_scripts_find_claims_and_both_sides_in_the_json(tmp_path: Path) -> None:
    as_json, as_html = report().write(tmp_path)
    value = json.loads(as_json.read_text())
    assert [s["name"] for s in value["steps"]][-1] == "better-than-fixed"
    assert value["comparison"]["own"]["in_time"] == 92
    assert value["comparison"]["fixed"]["in_time"] == 0
    assert as_html.read_text() == report().to_html()


def test_the_height_of_a_bar_is_its_value() -> None:
    panel = Panel("p", [Layer("a", "bars", "own", [0, 10, 20], [100, 50, 0])], top=100, height=80)
    svg = parsed(Figure("k", "t", "s", "a", 30, [panel]), WIDE)
    heights = [float(r.attrib["height"]) for r in svg.iter(f"{SVG}rect")]
    assert heights[:2] == [80, 40]
    assert 0 < heights[2] < 3, "nothing is still to be seen"


def test_what_lies_beyond_the_end_is_drawn_at_the_end() -> None:
    panel = Panel("p", [Layer("a", "dots", "own", [5, 99], [1, 99])], top=2)
    svg = parsed(Figure("k", "t", "s", "a", 10, [panel]), WIDE)
    grid = next(line for line in svg.iter(f"{SVG}line") if line.attrib["class"] == "grid")
    _, late = svg.iter(f"{SVG}circle")
    assert late.attrib["cx"] == grid.attrib["x2"]


def test_the_name_of_a_late_mark_stands_left_of_it() -> None:
    panel = Panel("p", [Layer("a", "line", "own", [0], [1])])
    marks = [(1.0, "an early one"), (9.5, "a late one")]
    svg = parsed(Figure("k", "t", "s", "a", 10, [panel], marks), NARROW)
    named = [t for t in svg.iter(f"{SVG}text") if t.attrib["class"].startswith("mark")]
    assert [t.attrib["class"] for t in named] == ["mark", "mark end"]
    assert len({t.attrib["y"] for t in named}) == 2, "one row each"
