"""What people copy names images of this version: the package, the chart and the examples agree."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pdserve import __version__
from pdserve.local.binaries import PROMETHEUS_VERSION

ROOT = Path(__file__).resolve().parents[3]
IMAGE = re.compile(r"\b((?:pdserve/(?:operator|gateway|engine))|prom/prometheus):([\w.-]+)")


def named() -> dict[str, set[tuple[str, str]]]:
    """File -> (image, tag), of every image named in what people read or apply."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.yaml")]
    found = {str(p.relative_to(ROOT)): set(IMAGE.findall(p.read_text())) for p in paths}
    return {path: images for path, images in found.items() if images}


def test_examples_and_pages_name_images_of_this_version() -> None:
    # Prometheus's Go module calls v3.15.0 v0.315.0.
    minor = PROMETHEUS_VERSION.removeprefix("v0.3").removesuffix(".0")
    tags = {"prom/prometheus": f"v3.{minor}.0"}
    wrong = {
        f"{path}: {image}:{tag}"
        for path, images in named().items()
        for image, tag in images
        if tag != tags.get(image, __version__)
    }
    assert wrong == set()
    assert {"README.md", "examples/demo-pdservice.yaml"} <= named().keys()


def test_a_plain_helm_install_finds_the_images_of_this_version() -> None:
    chart = yaml.safe_load((ROOT / "charts/pdserve/Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "charts/pdserve/values.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert values["images"]["tag"] == ""  # the chart then takes appVersion
