"""An upgrade from an earlier commit, and the way back, under traffic.

Operator, gateways, chart and kinds change; instances stay, and what joins them links with them.
The earlier commit is taken from the clone.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import scenarios as s
from tests.support.chart import CHART, helm
from tests.support.cluster import running_cluster
from tests.support.following import Following
from tests.support.groups_at_rest import wait_groups
from tests.support.installed import EXAMPLES, OPERATOR_NAMESPACE, fixed, pdservice, scenario
from tests.support.process_cluster import ProcessCluster

from localcluster.agent.images import ENV_RELEASES
from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOT = CHART.parents[1]
OLD_COMMIT = os.environ.get("PDSERVE_UPGRADE_FROM", "c9d43e0")
"""By default the last one before credentials were parted by use (docs/credentials.md)."""
NAMESPACE = "upgrade"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
FLOATING = "pdserve/engine:floating"
"""An image whose content changes under its tag, so that one P/D group has both engines."""
Record = Callable[[str, object], None]


class Site:
    """A cluster that has images of both versions."""

    def __init__(self, cluster: ProcessCluster, releases: Path) -> None:
        self.cluster = cluster
        self._releases = releases

    def point_engine_at(self, release: str) -> None:
        """Containers of `FLOATING` that start from now on run this release."""
        link = self._releases / "floating"
        link.unlink(missing_ok=True)
        link.symlink_to(release)

    def install(self, action: str, release: str) -> None:
        """`helm install|upgrade` of a release's own chart, and its operator leads."""
        chart = (self._releases / release).resolve() / "charts" / "pdserve"
        done = helm(
            action, "pdserve", str(chart), "--namespace", OPERATOR_NAMESPACE, "--wait",
            "--timeout", "180s", "--set", f"images.tag={release}", "--set", "operator.replicas=1",
            kubeconfig=self.cluster.kubeconfig,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def gateways_of(self, release: str) -> bool:
        """Two ready gateways, and no other, run this release."""
        every = s.gateways(self.cluster, NAMESPACE, NAMESPACE, every=True)
        tags = [p["spec"]["containers"][0]["image"].rpartition(":")[2] for p in every]
        return tags == [release] * 2 and all(s.is_ready(p) for p in every)

    def instances(self) -> dict[str, s.Identity]:
        found = {s.name_of(p) for p in s.pods(self.cluster, NAMESPACE)}
        every = s.identities(self.cluster, NAMESPACE)
        return {name: identity for name, identity in every.items() if name in found}

    def change_operator(self, release: str, traffic: Following) -> None:
        """Upgrade or go back: gateways follow, no instance is touched, requests go on."""
        before = self.instances()
        self.install("upgrade", release)
        s.until("gateways of that release alone", lambda: self.gateways_of(release), 180)
        s.wait_service(self.cluster, NAMESPACE, NAMESPACE, 120)
        s.wait_settled(self.cluster, NAMESPACE, GROUP, 120)
        traffic.wait_more(20)
        assert s.difference(before, self.instances()) == s.Difference(set(), set(), set())
        assert traffic.errors == []

    def lose(self, role: str, traffic: Following) -> str:
        """One instance is lost; its substitute joins its P/D group and is linked with all of it.

        Its own streams may be cut; no request is lost before its stream. Name of the substitute.
        """
        cluster, known = self.cluster, len(traffic.errors)
        before = s.identities(cluster, NAMESPACE)
        victim = s.name_of(s.pods(cluster, NAMESPACE, role=role)[0])
        cluster.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--wait=false")
        (fresh,) = s.wait_substituted(cluster, NAMESPACE, GROUP, before, {victim}, 120)
        wait_groups(cluster, NAMESPACE, GROUP, 120)
        s.until("it is routed", lambda: fresh in s.routed(cluster, NAMESPACE, NAMESPACE), 120)
        traffic.wait_more(20)
        assert traffic.errors[known:] == []
        return str(fresh)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both releases as checkouts; the old one installed, PDService upgrade/upgrade Ready."""
    base = tmp_path_factory.mktemp("upgrade")
    releases = base / "releases"
    (releases / "old").mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", OLD_COMMIT, "operator", "charts"],
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip(f"commit {OLD_COMMIT} is not in this clone: {archive.stderr.decode()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(releases / "old", filter="data")
    (releases / "new").symlink_to(ROOT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_RELEASES, str(releases))
        with running_cluster(base / "state", name="upgrade") as access:
            cluster = ProcessCluster(access)
            site = Site(cluster, releases)
            for namespace in (NAMESPACE, OPERATOR_NAMESPACE):
                labels = {"pod-security.kubernetes.io/enforce": "restricted"}
                meta = {"name": namespace, "labels": labels}
                cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
            site.point_engine_at("old")
            site.install("install", "old")
            cluster.kubectl("apply", "-f", str(EXAMPLES / "demo-rocedomain.yaml"))
            cluster.apply(
                pdservice(
                    NAMESPACE, NAMESPACE, scenario("chat", fixed(1, 2, 2)),
                    engine={"type": "Reference", "image": FLOATING}, gateway={"replicas": 2},
                    recovery={"drainSeconds": 30, "nodeSuspectSeconds": 30},
                ),
                namespace=NAMESPACE,
            )  # fmt: skip
            s.wait_service(cluster, NAMESPACE, NAMESPACE, 120)
            yield site


def test_an_upgrade_and_the_way_back_fail_no_request_and_roll_no_group(
    site: Site, record_property: Record
) -> None:
    s.until("two old gateways", lambda: site.gateways_of("old"), 120)
    with Following(site.cluster, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(10)
        with s.stopwatch() as seconds:
            site.change_operator("new", traffic)
            record_property("upgrade_seconds", round(seconds(), 1))
        # The old engine under the new operator, then the new engine: both join the old group.
        site.lose("prefill", traffic)
        site.point_engine_at("new")
        site.lose("decode", traffic)
        with s.stopwatch() as seconds:
            site.change_operator("old", traffic)
            record_property("way_back_seconds", round(seconds(), 1))
        # The engine of either version under the old operator.
        site.lose("prefill", traffic)
        site.point_engine_at("old")
        site.lose("decode", traffic)
        record_property("requests", traffic.completed)
    assert traffic.errors == []
