"""What the README shows can be used as it stands."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import yaml

from pdserve import __version__
from pdserve.api import PDService, RoCEDomain

ROOT = Path(__file__).resolve().parents[3]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_its_service_is_valid_and_names_the_domain_it_applies() -> None:
    [text] = blocks("yaml")
    service = PDService.parse(yaml.safe_load(text))
    domain = yaml.safe_load((ROOT / "examples" / "demo-rocedomain.yaml").read_text())
    assert service.spec.fabric.domain_ref.name == RoCEDomain.parse(domain).metadata.name


def test_it_says_which_images_must_exist_and_what_the_model_is() -> None:
    """K7.14: a reader who copies the service must not wait for an image or a model in vain."""
    text = (ROOT / "README.md").read_text()
    [shown] = blocks("yaml")
    service = PDService.parse(yaml.safe_load(shown))
    after = text.partition(shown)[2]
    for image in (service.spec.engine.image, f"pdserve/operator:{__version__}",
                  f"pdserve/gateway:{__version__}"):  # fmt: skip
        assert image in after
    assert service.spec.model.name == "pdserve-tiny", "the one that the engine's image holds"
    assert "`pdserve-tiny` is the toy model" in after


def test_its_files_and_make_targets_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in [*re.findall(r"\]\((docs/[^)#]*)\)", text), "examples/demo-rocedomain.yaml"]:
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for used in re.findall(r"`?make ([a-z0-9-]+)", text):
        assert used in targets, used


def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "hack" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_its_picture_is_what_the_script_draws_for_light_and_dark() -> None:
    module = picture()
    drawn = module.pictures()
    assert {path: (ROOT / path).read_text() for path in drawn} == drawn
    text = (ROOT / "README.md").read_text()
    [shown] = re.findall(r"<picture>.*?</picture>", text, re.DOTALL)
    assert all(path in shown for path in drawn)
    assert "prefers-color-scheme: dark" in shown
    assert f'alt="{module.ALT}"' in shown


def test_its_picture_stays_within_its_frame() -> None:
    for text in picture().pictures().values():
        svg = ElementTree.fromstring(text)
        width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
        for box in svg.iter("{http://www.w3.org/2000/svg}rect"):
            x, y, w, h = (float(box.attrib[k]) for k in ("x", "y", "width", "height"))
            assert 0 <= x <= x + w <= width, box.attrib
            assert 0 <= y <= y + h <= height, box.attrib


def test_it_begins_with_one_sentence_before_the_picture() -> None:
    first = (ROOT / "README.md").read_text().split("\n\n")[1]
    assert re.fullmatch(r"[^.]+\.", first), first


def comparison() -> list[list[str]]:
    """Cells of the table of peers, row by row, without its heading."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:1] == "|"]
    begin = next(i for i, row in enumerate(rows) if "| Dynamo |" in row)
    body = []
    for row in rows[begin + 2 :]:
        cells = [c.strip() for c in row.strip("|").split("|")]
        if len(cells) != 7:
            break
        body.append(cells)
    return body


def test_each_word_on_a_peer_has_its_source_and_each_word_on_us_its_page() -> None:
    text = (ROOT / "README.md").read_text()
    sources = dict(re.findall(r"^\[(\w+)\]: (\S+)$", text, re.MULTILINE))
    used = set(re.findall(r"\]\[(\w+)\]", text))
    assert used == sources.keys()
    for url in sources.values():
        assert re.match(r"https://github\.com/[^/]+/[^/]+/(blob/[0-9a-f]{40}/|issues/\d+$)", url), (
            url
        )
    rows = [row for row in comparison() if any(row[1:])]
    assert len(rows) > 10
    for row in rows:
        if row[1].startswith("yes") or "[yes" in row[1]:
            assert "](docs/" in row[1], row
        for cell in row[2:]:
            assert cell in ("–", "?") or "][" in cell, (row[0], cell)


def test_the_table_says_where_others_are_ahead() -> None:
    behind = [row for row in comparison() if row[1].strip("*").startswith(("no", "part"))]
    assert len(behind) > 4
