"""Install, upgrade, uninstall and install again, by the real Helm on a real API server.

A control plane of its own, because the kinds come and go. Nothing runs here; what happens to
running pods is in `tests/cluster/test_operator_rights.py`.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.api_objects import pdservice
from tests.support.chart import CHART, Json, helm
from tests.support.cluster import eventually, running_control_plane
from tests.support.crds import collection
from tests.support.rest import Answer, Rest

from localcluster import processes
from localcluster.controlplane import ControlPlane

pytestmark = pytest.mark.api

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
SERVICES = collection("PDService")
DOCS = CHART.parents[1] / "docs" / "install.md"
KINDS = (
    "/api/v1/serviceaccounts", "/apis/apps/v1/deployments", "/apis/policy/v1/poddisruptionbudgets",
    "/apis/coordination.k8s.io/v1/leases",
    *(f"/apis/rbac.authorization.k8s.io/v1/{kind}"
      for kind in ("roles", "rolebindings", "clusterroles", "clusterrolebindings")),
)  # fmt: skip


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with running_control_plane(tmp_path_factory.mktemp("helm")) as plane:
        yield plane


class Site:
    """The API server, and Helm on it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.rest = Rest.of(plane)
        self.releases: set[tuple[str, str]] = set()

    def helm(
        self, action: str, release: str = "pdserve", namespace: str = "pdserve-system",
        *args: str, chart: Path = CHART,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        where = ["--namespace", namespace]
        if action == "uninstall":
            self.releases.discard((release, namespace))
        else:
            self.releases.add((release, namespace))
            where = [str(chart), *where]
        if action == "install":
            where.append("--create-namespace")
        return helm(action, release, *where, *args, kubeconfig=self.plane.kubeconfig)

    def done(self, action: str, *args: str, **more: Any) -> str:
        result = self.helm(action, *args, **more)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def crds(self) -> dict[str, Json]:
        items = self.rest.get(CRDS).body["items"]
        return {c["metadata"]["name"]: c for c in items if c["spec"]["group"] == "pdserve.io"}

    def remove_kinds(self) -> None:
        """Delete them, and wait until they are gone.

        The API server removes their objects first, in another goroutine. When its storage is just
        being made anew, that fails once; the retry may meet a cache that is not up to date, and is
        then forgotten until a resync minutes later, or any other change of the kind.
        """
        for name in self.crds():
            assert self.rest.call("DELETE", f"{CRDS}/{name}").code == 200
        wakes = itertools.count()
        look_again = processes.Deadline(3.0)

        def gone() -> bool:
            nonlocal look_again
            left = self.crds()
            if left and look_again.passed:
                look_again = processes.Deadline(3.0)
                wake = {"metadata": {"annotations": {"example.test/wake": str(next(wakes))}}}
                for name in left:
                    self.rest.patch(f"{CRDS}/{name}", wake)
            return not left

        eventually("the kinds are gone", gone, 60.0)

    def create(self, name: str, **recovery: int) -> Answer:
        """A PDService once its kind is served; unknown fields are an error."""
        eventually("the kind is served", lambda: self.rest.get(SERVICES).code == 200)
        wanted = pdservice()
        wanted["metadata"] = {"name": name, "namespace": "default"}
        wanted["spec"]["recovery"] = recovery
        return self.rest.create(SERVICES, wanted)

    def uid(self, name: str) -> str:
        return str(self.rest.get(f"{SERVICES}/{name}").body["metadata"]["uid"])

    def made(self) -> list[str]:
        """What is there of any release, beside the kinds."""
        found = []
        for path in KINDS:
            body = self.rest.get(path, labelSelector="app.kubernetes.io/part-of=pdserve").body
            found += [f"{path}/{o['metadata']['name']}" for o in body["items"]]
        return found


@pytest.fixture
def site(plane: ControlPlane) -> Iterator[Site]:
    """Nothing installed; and nothing left afterwards."""
    site = Site(plane)
    yield site
    for release, namespace in sorted(site.releases):
        site.helm("uninstall", release, namespace)
    site.remove_kinds()
    assert site.made() == []


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The chart of an earlier version: one whose PDService had no recovery.nodeSuspectSeconds."""
    chart = tmp_path / "pdserve"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9"}))
    path = chart / "files" / "crds" / "pdservices.pdserve.io.yaml"
    crd = yaml.safe_load(path.read_text())
    (version,) = crd["spec"]["versions"]
    recovery = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["recovery"]
    del recovery["properties"]["nodeSuspectSeconds"]
    recovery.pop("default", None)
    path.write_text(yaml.safe_dump(crd))
    return chart


def test_an_upgrade_upgrades_the_kinds_and_their_objects_survive(site: Site, older: Path) -> None:
    site.done("install", chart=older)
    assert site.create("before", drainSeconds=7).code == 201
    refused = site.create("early", nodeSuspectSeconds=9)
    assert refused.code == 400
    assert "nodeSuspectSeconds" in refused.body["message"]
    uid = site.uid("before")
    site.done("upgrade")
    eventually(
        "the new field is known", lambda: site.create("new", nodeSuspectSeconds=9).code == 201
    )
    assert site.uid("before") == uid
    assert site.rest.get(f"{SERVICES}/before").body["spec"]["recovery"]["drainSeconds"] == 7


def test_a_rollback_takes_the_kinds_back_too(site: Site, older: Path) -> None:
    site.done("install", chart=older)
    site.done("upgrade")
    back = helm(
        "rollback", "pdserve", "1", "-n", "pdserve-system", kubeconfig=site.plane.kubeconfig
    )
    assert back.returncode == 0, back.stderr
    text = json.dumps(site.crds()["pdservices.pdserve.io"]["spec"])
    assert "nodeSuspectSeconds" not in text


def test_uninstall_leaves_the_kinds_and_their_objects_and_nothing_else(site: Site) -> None:
    site.done("install")
    assert len(site.made()) == len(KINDS) + 2 + 3, "two of each cluster-wide kind, aggregated roles"
    assert site.create("kept").code == 201
    uid = site.uid("kept")
    said = site.done("uninstall")
    assert "kept due to the resource policy" in said
    assert site.made() == []
    assert len(site.crds()) == 3
    assert site.uid("kept") == uid
    # The same release again: it finds its own kinds.
    site.done("install")
    assert site.uid("kept") == uid


@pytest.mark.parametrize(
    ("release", "namespace"), [("other", "pdserve-system"), ("pdserve", "elsewhere")]
)
def test_kinds_kept_by_another_release_are_taken_over_when_told(
    site: Site, release: str, namespace: str
) -> None:
    site.done("install")
    assert site.create("kept").code == 201
    uid = site.uid("kept")
    site.done("uninstall")
    refused = site.helm("install", release, namespace)
    assert refused.returncode != 0
    assert "pdservices.pdserve.io" in refused.stderr
    assert "meta.helm.sh/release-name" in refused.stderr or "release-namespace" in refused.stderr
    assert site.made() == [], "it failed as a whole"
    site.done("install", release, namespace, "--take-ownership")
    owners = {
        c["metadata"]["annotations"]["meta.helm.sh/release-name"] for c in site.crds().values()
    }
    assert owners == {release}
    assert site.uid("kept") == uid
    site.done("upgrade", release, namespace)


def test_kinds_applied_by_hand_are_taken_over_when_told(site: Site) -> None:
    for path in sorted((CHART / "files" / "crds").glob("*.yaml")):
        assert site.rest.create(CRDS, yaml.safe_load(path.read_text())).code == 201
    assert site.helm("install").returncode != 0
    site.done("install", "pdserve", "pdserve-system", "--take-ownership")
    for crd in site.crds().values():
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_a_second_release_lives_beside_the_first(site: Site) -> None:
    """For another namespace; the kinds stay with the first."""
    for team in ("team-a", "team-b"):
        assert site.rest.create("/api/v1/namespaces", {"metadata": {"name": team}}).code == 201
    site.done("install", "pdserve", "team-a", "--set", "operator.watchNamespace=team-a")
    arguments = ("--set", "operator.watchNamespace=team-b,crds.install=false")
    site.done("install", "pdserve", "team-b", *arguments)
    both = len(site.made())
    site.done("uninstall", "pdserve", "team-b")
    assert len(site.made()) == both / 2
    assert len(site.crds()) == 3


def test_the_page_names_what_helps_and_nothing_that_helm_does_not_know() -> None:
    text = DOCS.read_text()
    assert "--take-ownership" in text
    for action in ("install", "upgrade"):
        known = helm(action, "--help").stdout
        for line in re.findall(rf"^ *helm {action} .*$", text, re.MULTILINE):
            for flag in re.findall(r"(--[a-z-]+)", line):
                assert flag in known, line
