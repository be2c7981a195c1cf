"""One fault replaces one instance, nothing else restarts, and clients hardly notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups, wait_groups
from tests.support.installed import (
    NAMESPACE,
    SERVICE,
    Installed,
    fixed,
    make_namespace,
    pdservice,
    role,
    scenario,
    shop,
)
from tests.support.traffic import Traffic

from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.invariant(4)]

CHAT = names.scenario_group_name(SERVICE, "chat")
WIDE = "wide"
WIDE_GROUP = names.scenario_group_name(WIDE, "chat")

Record = Callable[[str, object], None]


@pytest.fixture
def traffic(installed: Installed, shop_service: Mapping[str, float]) -> Iterator[Traffic]:
    """A light stream to `chat`; when it ends, no request may have been lost unanswered."""
    cluster = installed.cluster
    s.wait_settled(cluster, NAMESPACE, CHAT)
    urls = [cluster.url(pod) for pod in s.wait_gateways(cluster, NAMESPACE, SERVICE, 2)]
    with Traffic(urls) as traffic:
        s.until("requests are being served", lambda: traffic.completed >= 4)
        yield traffic
        served = traffic.completed
        s.until("requests are still served", lambda: traffic.completed >= served + 8)
    assert traffic.lost == []


def test_a_deleted_decode_is_substituted_alone(
    installed: Installed, traffic: Traffic, record_property: Record
) -> None:
    cluster = installed.cluster
    before = s.identities(cluster, NAMESPACE)
    victim = s.name_of(s.pods(cluster, NAMESPACE, role="decode", scenario="chat")[0])
    cluster.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--force", "--grace-period=0")
    with s.stopwatch() as seconds:
        s.wait_substituted(cluster, NAMESPACE, CHAT, before, {victim})
        s.wait_service(cluster, NAMESPACE, SERVICE)
        record_property("recovery_seconds", round(seconds(), 1))
    check_groups(cluster, NAMESPACE, CHAT)


@pytest.mark.invariant(1)
def test_a_killed_prefill_restarts_in_place_and_is_not_routed_until_linked(
    installed: Installed, traffic: Traffic, record_property: Record
) -> None:
    cluster = installed.cluster
    before = s.identities(cluster, NAMESPACE)
    pod = s.pods(cluster, NAMESPACE, role="prefill", scenario="chat")[0]
    victim, path = s.name_of(pod), f"/api/v1/namespaces/{NAMESPACE}/pods/{s.name_of(pod)}"
    old = pod["status"]["containerStatuses"][0]["containerID"]
    cluster.kill(NAMESPACE, victim)

    def routed() -> bool:
        return victim in s.routed(cluster, NAMESPACE, SERVICE)

    with s.stopwatch() as seconds:
        s.until("it left the routes", lambda: not routed())
        s.until("it is routed again", routed)
        # The routes were read before the pod: each instance in them must by now be linked.
        linked = s.condition(cluster.get(path), names.CONDITION_LINKED)
        assert linked["status"] == "True"
        assert linked["message"] not in ("", old), "linked means: for the container that runs"
        s.wait_service(cluster, NAMESPACE, SERVICE)
        record_property("recovery_seconds", round(seconds(), 1))
    change = s.difference(before, s.identities(cluster, NAMESPACE))
    assert change == s.Difference(set(), set(), {victim})
    wait_groups(cluster, NAMESPACE, CHAT)


# --- nodes and devices -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(installed: Installed, shop_service: Mapping[str, float]) -> Iterator[s.Cluster]:
    """1P1D of instances that take all devices of a node each.

    A substitute needs a third whole node, and the shop holds two of the four that kind has: it is
    away meanwhile.
    """
    cluster = installed.cluster
    cluster.kubectl("delete", "pdservice", SERVICE, "-n", NAMESPACE)
    s.until("the shop is away", lambda: not s.pods(cluster, NAMESPACE, service=SERVICE))
    make_namespace(cluster, WIDE)
    whole = role(slots=4, devices=8)
    service = pdservice(
        WIDE, WIDE, scenario("chat", fixed(1, 1, 1)), prefill=whole, decode=whole,
        # Two nodes that fall silent together are found so, and heard again, some seconds apart;
        # real kubelets some ten. And Kubernetes keeps whole seconds.
        recovery={
            "drainSeconds": 2,
            "nodeSuspectSeconds": 15 if cluster.nodes == "process" else 30,
        },
    )  # fmt: skip
    cluster.apply(service, namespace=WIDE)
    s.wait_service(cluster, WIDE, WIDE)
    yield cluster
    # A namespace waits for its pods for half a minute, whether they are gone or not.
    cluster.kubectl("delete", "pdservice", WIDE, "-n", WIDE)
    s.until("its whole nodes are free again", lambda: not s.pods(cluster, WIDE))
    cluster.kubectl("delete", "namespace", WIDE, "--wait=false")
    cluster.apply(shop(), namespace=NAMESPACE)
    s.wait_service(cluster, NAMESPACE, SERVICE)


def one(cluster: s.Cluster, role_name: str) -> s.Json:
    """The instance of a role in `wide`."""
    (pod,) = [p for p in s.pods(cluster, WIDE, role=role_name) if not s.leaving(p)]
    return pod


def test_an_unhealthy_device_costs_one_instance(wide: s.Cluster, record_property: Record) -> None:
    pod, before = one(wide, "decode"), s.identities(wide, WIDE)
    node = pod["spec"]["nodeName"]
    wide.device(node, 3, healthy=False)
    try:
        with s.stopwatch() as seconds:
            s.wait_substituted(wide, WIDE, WIDE_GROUP, before, {s.name_of(pod)})
            record_property("recovery_seconds", round(seconds(), 1))
        fresh = one(wide, "decode")
        assert fresh["spec"]["nodeName"] != node
        assert fresh["metadata"]["annotations"][names.ANNOTATION_REPLACES] == pod["metadata"]["uid"]
        repairs = (s.group(wide, WIDE, WIDE_GROUP) or {})["status"]["repairs"]
        assert [r["fault"] for r in repairs] == ["DeviceUnhealthy"]
        assert repairs[0]["suspectNode"] == node
    finally:
        wide.device(node, 3, healthy=True)
    check_groups(wide, WIDE, WIDE_GROUP)


@pytest.mark.invariant(1)
def test_a_node_that_restarts_in_time_keeps_its_instance(
    wide: s.Cluster, record_property: Record
) -> None:
    """Same pod, same name, new process and address: linked anew, and nothing is substituted."""
    before = _instances(wide)
    pod = one(wide, "prefill")
    victim, node = s.name_of(pod), pod["spec"]["nodeName"]
    old = pod["status"]["containerStatuses"][0]["containerID"]

    def relinked() -> bool:
        linked = s.condition(one(wide, "prefill"), names.CONDITION_LINKED)
        return linked["status"] == "True" and linked["message"] not in ("", old)

    wide.stop(node)
    wide.start(node)
    with s.stopwatch() as seconds:
        s.until("it is linked again", relinked)
        s.wait_service(wide, WIDE, WIDE)
        record_property("recovery_seconds", round(seconds(), 1))
    assert s.difference(before, _instances(wide)) == s.Difference(set(), set(), {victim})
    s.until("it is routed", lambda: victim in s.routed(wide, WIDE, WIDE))
    check_groups(wide, WIDE, WIDE_GROUP)


def _instances(cluster: s.Cluster) -> dict[str, s.Identity]:
    """Of `wide`; gateways may stand on the same nodes."""
    mine = {s.name_of(pod) for pod in s.pods(cluster, WIDE)}
    return {name: i for name, i in s.identities(cluster, WIDE).items() if name in mine}


@pytest.mark.invariant(2)
def test_a_silent_node_is_waited_for_and_only_a_lost_one_is_replaced(
    wide: s.Cluster, record_property: Record
) -> None:
    """Both nodes fall silent; the prefill's is heard again in time, the decode's is not."""
    before = s.identities(wide, WIDE)
    short, long = one(wide, "prefill"), one(wide, "decode")
    near, far = short["spec"]["nodeName"], long["spec"]["nodeName"]

    def known(node: str) -> str:
        obj = wide.get(f"/api/v1/nodes/{node}")
        return str(s.condition(obj, "Ready").get("status"))

    wide.cut(near)
    wide.cut(far)
    try:
        s.until("both nodes NotReady", lambda: known(near) != "True" and known(far) != "True")
        assert s.difference(before, s.identities(wide, WIDE)) == s.Difference(set(), set(), set())
        wide.restore(near)
        with s.stopwatch() as seconds:
            # The lost pod cannot confirm its end while its node is silent.
            s.wait_substituted(wide, WIDE, WIDE_GROUP, before, {s.name_of(long)})
            record_property("recovery_seconds", round(seconds(), 1))
        assert one(wide, "decode")["spec"]["nodeName"] not in (near, far)
        assert one(wide, "prefill")["metadata"]["uid"] == short["metadata"]["uid"]
    finally:
        wide.restore(near)
        wide.restore(far)
    s.until("the node is back", lambda: known(far) == "True")
    s.until("the lost pod is gone", lambda: len(s.pods(wide, WIDE)) == 2)
    check_groups(wide, WIDE, WIDE_GROUP)
