"""The operator or a gateway dies and comes back; requests on the other path notice nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from tests.support import scenarios as s
from tests.support.installed import (
    NAMESPACE,
    OPERATOR_NAMESPACE,
    SERVICE,
    Installed,
)
from tests.support.traffic import Traffic

from pdserve.wire import names

pytestmark = pytest.mark.cluster

CHAT = names.scenario_group_name(SERVICE, "chat")
Record = Callable[[str, object], None]


def test_a_killed_gateway_comes_back_while_the_other_serves(
    installed: Installed, shop_service: Mapping[str, float], record_property: Record
) -> None:
    cluster = installed.cluster
    before = s.identities(cluster, NAMESPACE)
    victim, other = s.wait_gateways(cluster, NAMESPACE, SERVICE, 2)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{s.name_of(victim)}"
    restarted = before[s.name_of(victim)].restarts + 1
    with Traffic([cluster.url(other)]) as traffic:
        s.until("requests are being served", lambda: traffic.completed >= 4)
        with s.stopwatch() as seconds:
            cluster.kill(NAMESPACE, s.name_of(victim))

            def back() -> bool:
                pod = cluster.get(path) or {}
                (container,) = pod["status"]["containerStatuses"]
                return container["restartCount"] == restarted and s.is_ready(pod)

            s.until("the gateway is back", back)
            record_property("gateway_back_seconds", round(seconds(), 1))
    assert [o for o in traffic.outcomes if o.error] == []
    with Traffic([cluster.url(victim)]) as traffic:
        s.until("it serves", lambda: traffic.completed >= 4)
    assert [o for o in traffic.outcomes if o.error] == []
    change = s.difference(before, s.identities(cluster, NAMESPACE))
    assert change == s.Difference(set(), set(), {s.name_of(victim)})


@pytest.mark.invariant(2)
def test_a_killed_operator_comes_back_and_leads_again(
    installed: Installed, shop_service: Mapping[str, float], record_property: Record
) -> None:
    """It changes nothing by coming back; what was lost meanwhile is made good."""
    cluster = installed.cluster
    s.wait_settled(cluster, NAMESPACE, CHAT)
    operator, before = installed.operator(), s.identities(cluster, NAMESPACE)
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{s.name_of(operator)}"

    def restarts() -> int:
        return int((cluster.get(path) or {})["status"]["containerStatuses"][0]["restartCount"])

    restarted = restarts() + 1
    urls = [cluster.url(pod) for pod in s.wait_gateways(cluster, NAMESPACE, SERVICE, 2)]
    with Traffic(urls) as traffic:
        s.until("requests are being served", lambda: traffic.completed >= 4)
        with s.stopwatch() as seconds:
            cluster.kill(OPERATOR_NAMESPACE, s.name_of(operator))
            s.until("the operator was restarted", lambda: restarts() == restarted)
            unchanged = s.difference(before, s.identities(cluster, NAMESPACE))
            assert unchanged == s.Difference(set(), set(), set())
            victim = s.name_of(s.pods(cluster, NAMESPACE, role="decode", scenario="chat")[0])
            cluster.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--force", "--grace-period=0")
            s.wait_substituted(cluster, NAMESPACE, CHAT, before, {victim})
            record_property("acting_again_seconds", round(seconds(), 1))
    assert traffic.lost == []
    s.wait_service(cluster, NAMESPACE, SERVICE)
