"""Planned changes: draining, a rollout, a rollout taken back. What is served stays served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups
from tests.support.installed import (
    Installed,
    fetch,
    fixed,
    image,
    make_namespace,
    pdservice,
    scenario,
)
from tests.support.traffic import Traffic

from pdserve.engines.reference.metrics import PATH_VLLM, VLLM_RUNNING
from pdserve.wire import names

pytestmark = pytest.mark.cluster

NAMESPACE = "life"
TOKENS = 900
"""Of a stream that outlives a change."""
GROUP = names.scenario_group_name(NAMESPACE, "chat")


class Service:
    """PDService life/life with one scenario."""

    def __init__(self, cluster: s.Cluster) -> None:
        self.cluster = cluster
        self.document = pdservice(
            NAMESPACE, NAMESPACE, scenario("chat", fixed(1, 1, 2)),
            recovery={"drainSeconds": 120, "nodeSuspectSeconds": 30},
        )  # fmt: skip

    @property
    def spec(self) -> s.Json:
        """What `apply` applies."""
        spec: s.Json = self.document["spec"]
        return spec

    def apply(self) -> None:
        """`kubectl apply`."""
        self.cluster.apply(self.document, namespace=NAMESPACE)

    def url(self) -> str:
        """Its gateway."""
        (gateway,) = s.wait_gateways(self.cluster, NAMESPACE, NAMESPACE, 1)
        return self.cluster.url(gateway)

    def instances(self) -> dict[str, s.Identity]:
        """Its instances that stay."""
        found = {s.name_of(p) for p in s.pods(self.cluster, NAMESPACE)}
        every = s.identities(self.cluster, NAMESPACE)
        return {name: identity for name, identity in every.items() if name in found}


@pytest.fixture(scope="module")
def service(installed: Installed) -> Iterator[Service]:
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    made = Service(cluster)
    made.apply()
    s.wait_service(cluster, NAMESPACE, NAMESPACE)
    yield made
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.invariant(5)
def test_a_drained_decode_finishes_its_streams(service: Service) -> None:
    """Streams run on both decodes when one is given up: all of them end whole."""
    cluster, url = service.cluster, service.url()
    # Ways into pods may take a second to open, in which a drain can be over.
    urls = {s.name_of(p): cluster.url(p) for p in s.pods(cluster, NAMESPACE, role="decode")}

    def draining() -> list[str]:
        return [
            s.name_of(p)
            for p in s.pods(cluster, NAMESPACE, role="decode")
            if names.ANNOTATION_DRAIN in p["metadata"].get("annotations", {})
        ]

    busy: dict[str, float] = {}

    def begun() -> list[str]:
        """Who drains; what ran on each decode the moment before is in `busy`.

        Afterwards is too late on a busy machine: the pod may have drained and ended.
        """
        found = draining()
        if not found:
            with suppress(OSError):  # it drained and ended since
                for name, at in urls.items():
                    told = fetch(at + PATH_VLLM)
                    running = re.search(rf"^{VLLM_RUNNING}\S* (\S+)$", told, re.M)
                    busy[name] = float(running[1]) if running is not None else 0.0
        return found

    before = service.instances()
    # New streams come until the drain begins, however long the operator takes on a busy machine.
    with Traffic([url], workers=8, max_tokens=TOKENS, to_the_end=True) as traffic:
        s.until("all clients are served", lambda: sum(1 for o in traffic.outcomes if o.first) >= 8)
        assert not begun()
        service.spec["scenarios"][0]["ratio"] = fixed(1, 1, 1)
        service.apply()
        (decode,) = s.until("one decode drains", begun)
    assert busy[decode] > 0, "nothing was in flight on it"
    assert [o.error for o in traffic.outcomes if o.error] == []
    assert all(o.ended is not None for o in traffic.outcomes)
    s.until("the drained decode is gone", lambda: len(service.instances()) == 2)
    s.wait_settled(cluster, NAMESPACE, GROUP)
    change = s.difference(before, service.instances())
    assert (len(change.gone), change.new, change.restarted) == (1, set(), set())


@pytest.mark.invariant(3)
def test_a_rollout_keeps_a_whole_group_serving(service: Service) -> None:
    """At every look, one revision has a prefill and a decode that are routed."""
    cluster, old = service.cluster, service.instances()
    service.spec["prefill"]["env"] = [{"name": "ROLLED", "value": "1"}]

    def whole() -> bool:
        routes = s.table(
            cluster, NAMESPACE, names.routes_configmap_name(NAMESPACE), names.KEY_ROUTES
        )
        groups = routes["scenarios"][0]["groups"]
        return any({i["role"] for i in g["instances"]} == {"prefill", "decode"} for g in groups)

    def rolled() -> bool:
        assert whole(), "no P/D group of one revision served"
        change = s.difference(old, service.instances())
        return change.gone == set(old) and len(change.new) == len(old)

    with Traffic([service.url()]) as traffic:
        s.until("requests are being served", lambda: traffic.completed >= 4)
        service.apply()
        s.until("every instance was replaced", rolled)
        served = traffic.completed
        s.until("requests are served", lambda: traffic.completed >= served + 8)
    assert [o for o in traffic.outcomes if o.error] == [], "streams in flight end whole"
    s.wait_settled(cluster, NAMESPACE, GROUP)
    check_groups(cluster, NAMESPACE, GROUP)


@pytest.mark.invariant(7)
def test_taking_back_a_broken_revision_deletes_nothing_that_serves(service: Service) -> None:
    cluster, before = service.cluster, service.instances()
    service.spec["engine"]["image"] = "pdserve/no-such-engine:dev"
    service.apply()

    def broken() -> bool:
        change = s.difference(before, service.instances())
        assert not change.gone and not change.restarted, change
        return len(change.new) == 2

    s.until("a group of the new revision exists beside the old one", broken)
    s.until(
        "its image cannot be pulled",
        lambda: "no-such-engine" in cluster.kubectl("get", "pods", "-n", NAMESPACE, "-o", "yaml"),
    )
    assert s.routed(cluster, NAMESPACE, NAMESPACE) == set(before)
    service.spec["engine"]["image"] = image("engine")
    service.apply()
    s.until("only the old ones are left", lambda: service.instances() == before)
    s.wait_settled(cluster, NAMESPACE, GROUP)
    check_groups(cluster, NAMESPACE, GROUP)
