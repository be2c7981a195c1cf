"""What people copy names images of this version: the package, the chart and the examples agree."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from localcluster.binaries import (
    ETCD_VERSION,
    HELM_VERSION,
    KUBERNETES_VERSION,
    PROMETHEUS_VERSION,
)
from pdserve import __version__

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


def test_programs_are_built_in_the_versions_that_releases_have() -> None:
    text = (ROOT / "hack/programs/go.mod").read_text()
    required = dict(re.findall(r"^\t(\S+) (v\S+)", text, re.MULTILINE))
    assert required["k8s.io/kubernetes"] == KUBERNETES_VERSION
    assert required["go.etcd.io/etcd/server/v3"] == ETCD_VERSION
    assert required["helm.sh/helm/v3"] == HELM_VERSION
    assert required["github.com/prometheus/prometheus"] == PROMETHEUS_VERSION


def test_every_program_gets_the_kubernetes_libraries_of_the_control_plane() -> None:
    text = (ROOT / "hack/programs/go.mod").read_text()
    libraries = set(re.findall(r"^\t(k8s\.io/[\w-]+) v0\.\d+\.\d+(?: //.*)?$", text, re.MULTILINE))
    replaced = dict(re.findall(r"^\t(k8s\.io/\S+) => k8s\.io/\S+ (\S+)", text, re.MULTILINE))
    assert {"k8s.io/api", "k8s.io/apimachinery", "k8s.io/client-go", "k8s.io/kubectl"} <= libraries
    timed = {"k8s.io/kube-openapi", "k8s.io/utils"}  # have no releases
    assert libraries - timed <= replaced.keys()
    same = KUBERNETES_VERSION.replace("v1.", "v0.")
    assert {v for name, v in replaced.items() if name not in timed} == {same}


def test_a_plain_helm_install_finds_the_images_of_this_version() -> None:
    chart = yaml.safe_load((ROOT / "charts/pdserve/Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "charts/pdserve/values.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert values["images"]["tag"] == ""  # the chart then takes appVersion
